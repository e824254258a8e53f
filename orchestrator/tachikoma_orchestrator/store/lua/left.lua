-- Put on the record that an agent left, once.
--
-- KEYS
--   1  agent.<agent>:info    the agent's lease
--   2  orch:online           agents that joined and did not leave (hash)
--   3  orch:audit            audit trail (stream)
-- ARGV
--   1  agent id
-- RESULT: 1, or 0 where it is there, or had left before
if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then
  return 0
end
audit(KEYS[3], {'event', 'agent_left', 'agent_id', ARGV[1], 'authorized', '1', 'reason', 'its lease ended'})
return 1
