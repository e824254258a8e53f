-- Write the record of an execution that ended without a receipt again, if Redis lost it.
--
-- KEYS
--   1  orch:exec:<id>              ledger record (hash)
--   2  orch:audit                  audit trail (stream)
--   3  orch:index                  executions by time (zset)
--   4  orch:index:<agent>          executions of the agent by time (zset)
--   5  agent.<agent>:claim:<id>    claim (string)
-- ARGV
--   1  JSON object
--      id            execution id
--      agent         agent id
--      batch         id of the batch that the request is a part of; empty for none
--      state         its final state
--      error         why it ended so
--      fence         value of the claim that keeps the agent from starting the execution; empty for none
--      admitted_ms   time of its admission, ms
--      keep_seconds  how long the record, and the fence, are kept
--      record        names and values of all fields of the record
--      events        list of audit events, each with its names and values
-- RESULT: 1, or 0 if there is a record
local execution, trail, index_key, agent_index, claim = unpack(KEYS)
if redis.call('EXISTS', execution) == 1 then
  return 0
end
audit_all(trail, args.events)
redis.call('HSET', execution, unpack(args.record))
redis.call('EXPIRE', execution, args.keep_seconds)
if args.fence ~= '' then
  redis.call('SET', claim, args.fence, 'NX', 'EX', args.keep_seconds)
end
index('ZADD', index_key, args.admitted_ms, args.id)
index('ZADD', agent_index, args.admitted_ms, args.id)
if args.batch ~= '' then
  pcall(end_target, args.batch, args.agent, args.state, {id = args.id, error = args.error}, '', clock())
end
return 1
