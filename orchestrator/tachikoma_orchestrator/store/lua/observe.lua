-- Change the observers of an interactive execution, with the audit event: one begins, stays or leaves.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      agent     agent id
--      states    list of execution states in which the change applies
--      name      name of the observation
--      observer  SPIFFE ID of the observer
--      seconds   lifetime of the entry, unless it is renewed; 0 to remove it
--      limit     largest number of observers
--      event     names and values of the audit event; empty for none
-- RESULT: DONE | MISSING (the agent has no such execution) | STATE (it is in another state) | FULL
local execution, trail = unpack(KEYS)
local state, agent, stored = unpack(redis.call('HMGET', execution, 'state', 'agent', 'observers'))
if not state or agent ~= args.agent then
  return 'MISSING'
end
if not contains(args.states, state) then
  return 'STATE'
end
local readable, observers = pcall(cjson.decode, stored or '{}')
if not readable or type(observers) ~= 'table' then
  observers = {}
end
local now, count = clock(), 0
for name, entry in pairs(observers) do
  if type(entry) ~= 'table' or (tonumber(entry[2]) or 0) <= now then
    observers[name] = nil
  else
    count = count + 1
  end
end
if args.seconds > 0 and not observers[args.name] and count >= args.limit then
  return 'FULL'
end
observers[args.name] = args.seconds > 0 and {args.observer, now + args.seconds * 1000} or nil
redis.call('HSET', execution, 'observers', cjson.encode(observers))
if #args.event > 0 then
  audit_execution(trail, execution, args.event)
end
return 'DONE'
