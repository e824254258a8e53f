-- Keep an enrolment for its token, in place of any before it.
--
-- KEYS
--   1  orch:enrolment:<agent>  enrolment that waits for its token (string)
--   2  agent.<agent>:info      the agent's lease
--   3  orch:revoked            agents that were cut off (hash)
--   4  orch:audit              audit trail (stream)
-- ARGV
--   1  agent id
--   2  the signed enrolment
--   3  how long it lasts, ms
--   4  who made it
--   5  what the event says of it
-- RESULT: 1, or 0 where an agent of that id is online
if redis.call('EXISTS', KEYS[2]) == 1 and not revoked(KEYS[3], ARGV[1]) then
  return 0
end
if redis.call('GET', KEYS[1]) == ARGV[2] then
  return 1
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
audit(KEYS[4], {'event', 'agent_enrolled', 'agent_id', ARGV[1], 'authorized', '1', 'actor', ARGV[4], 'reason', ARGV[5]})
return 1
