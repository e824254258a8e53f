-- Change an interactive execution's session, with its audit event: attach a caller, count an epoch, detach.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      agent   agent id
--      states  list of execution states in which the change applies
--      begin   true to begin a new epoch
--      epoch   the caller's epoch; fields are set only if it is the latest one. 0 if an epoch is begun
--      fields  names and values of record fields to set
--      event   names and values of the audit event; empty for none
-- RESULT: {outcome, epoch}; outcome is
--   DONE | MISSING (the agent has no such execution) | STATE (it is in another state) | EPOCH (a later epoch exists)
local execution, trail = unpack(KEYS)
local state, agent, epoch = unpack(redis.call('HMGET', execution, 'state', 'agent', 'epoch'))
epoch = tonumber(epoch or 0) or 0
if not state or agent ~= args.agent then
  return {'MISSING', 0}
end
if not contains(args.states, state) then
  return {'STATE', epoch}
end
if #args.event > 0 then
  audit_execution(trail, execution, args.event)
end
if args.begin then
  epoch = epoch + 1
  redis.call('HSET', execution, 'epoch', text(epoch))
elseif args.epoch ~= epoch then
  return {'EPOCH', epoch}
end
if #args.fields > 0 then
  redis.call('HSET', execution, unpack(args.fields))
end
return {'DONE', epoch}
