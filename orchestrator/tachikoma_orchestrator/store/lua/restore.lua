-- Rebuild the ledger record of an execution from its order, if Redis lost the record, its approval or its dispatch.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  orch:audit            audit trail (stream)
--   3  orch:index            executions by time (zset)
--   4  orch:index:<agent>    executions of the agent by time (zset)
--   5  orch:open             executions without a final state, by deadline (zset)
--   6  orch:approvals        executions that wait for an approval (zset)
--   7  orch:parked:<id>      the request that waits for an approval (string)
-- ARGV
--   1  JSON object
--      id           execution id
--      agent        agent id
--      batch        id of the batch that the request is a part of; empty for none
--      digest       digest of the request
--      order        SHA-256 of the order
--      admitted_ms  time of the order, ms
--      deadline_ms  time from which on the order must not start, ms
--      record       names and values of the record's other fields
--      event        names and values of the audit event
-- RESULT: 1; 2 if there is a record of this order without a final state; 0 if there is another record
local execution, trail, index_key, agent_index, open, approvals, parked = unpack(KEYS)
local id = args.id
local state, digest, order = unpack(redis.call('HMGET', execution, 'state', 'digest', 'order_sha256'))
local pending = state == 'PENDING_APPROVAL' and digest == args.digest
local undispatched = state == 'QUEUED' and digest == args.digest and not order
if state and not pending and not undispatched then
  return order == args.order and (state == 'QUEUED' or state == 'STARTED') and 2 or 0
end
local history = 'QUEUED ' .. text(args.admitted_ms)
if pending then
  history = redis.call('HGET', execution, 'history') .. ';QUEUED ' .. text(clock())
end
local record = {
  'digest', args.digest, 'state', 'QUEUED', 'history', history, 'deadline_ms', text(args.deadline_ms),
  'dispatched_ms', text(args.admitted_ms),
}
if not state then
  append(record, 'admitted_ms', text(args.admitted_ms))
end
extend(record, args.record)
audit(trail, args.event)
redis.call('HSET', execution, unpack(record))
if args.batch ~= '' then
  start_waiting_target(args.batch, args.agent)
end
index('ZADD', index_key, text(args.admitted_ms), id)
index('ZADD', agent_index, text(args.admitted_ms), id)
index('ZADD', open, text(args.deadline_ms), id)
index('ZREM', approvals, id)
redis.call('DEL', parked)
return 1
