-- Change an interactive execution's session, with its audit event: attach a caller, begin an epoch, detach.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      agent    agent id
--      states   list of execution states in which the change applies
--      owner    name of the attachment
--      epoch    the latest epoch that it began; a record with an earlier one lost it, with the attachment's place
--      take     true to attach in place of another one; its event is recorded once
--      begin    true to begin a new epoch
--      seconds  how long the record names the attached caller, unless this is repeated; 0 to leave it as it is
--      fields   names and values of record fields to set
--      event    names and values of the audit event; empty for none
-- RESULT: {outcome, epoch}; outcome is
--   DONE | MISSING (the agent has no such execution) | STATE (it is in another state) |
--   OWNER (another attachment has its place; only the event was recorded)
local execution, trail = unpack(KEYS)
local state, agent, owner, epoch = unpack(redis.call('HMGET', execution, 'state', 'agent', 'session_owner', 'epoch'))
epoch = tonumber(epoch or 0) or 0
if not state or agent ~= args.agent then
  return {'MISSING', 0}
end
if not contains(args.states, state) then
  return {'STATE', epoch}
end
local attached = owner == args.owner or args.epoch > epoch
epoch = math.max(epoch, args.epoch)
if #args.event > 0 and not (args.take and attached) then
  audit_execution(trail, execution, args.event)
end
if not (args.take or attached) then
  return {'OWNER', epoch}
end
if owner ~= args.owner then
  redis.call('HSET', execution, 'session_owner', args.owner)
end
if args.begin then
  epoch = epoch + 1
  redis.call('HSET', execution, 'epoch', text(epoch))
end
if #args.fields > 0 then
  redis.call('HSET', execution, unpack(args.fields))
end
if args.seconds > 0 then
  redis.call('HSET', execution, 'attached_until_ms', text(clock() + args.seconds * 1000))
end
return {'DONE', epoch}
