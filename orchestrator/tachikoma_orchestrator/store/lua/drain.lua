-- Let an agent take no new executions, or take them again; on the record where that changes anything.
--
-- KEYS
--   1  orch:draining         agents that take no new executions (hash)
--   2  orch:agents           agents ever heard of (hash)
--   3  orch:audit            audit trail (stream)
-- ARGV
--   1  agent id
--   2  what is kept of it, JSON; empty to let it take executions again
--   3  who says so
--   4  why
-- RESULT: 1, or 0 where there is no such agent
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  return 0
end
local code
if ARGV[2] ~= '' then
  code = redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 and 'agent_drained'
else
  code = redis.call('HDEL', KEYS[1], ARGV[1]) == 1 and 'agent_resumed'
end
if code then
  audit(KEYS[3], {'event', code, 'agent_id', ARGV[1], 'authorized', '1', 'actor', ARGV[3], 'reason', ARGV[4]})
end
return 1
