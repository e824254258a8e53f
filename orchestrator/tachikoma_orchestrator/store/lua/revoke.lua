-- Cut an agent off, and put that on the record. Repeated, it counts from then on.
--
-- KEYS
--   1  orch:revoked            agents that were cut off (hash)
--   2  orch:agents             agents ever heard of (hash)
--   3  orch:joined             agents that joined with a token (hash)
--   4  orch:enrolment:<agent>  enrolment that waits for its token (string)
--   5  orch:online             agents that joined and did not leave (hash)
--   6  orch:audit              audit trail (stream)
-- ARGV
--   1  agent id
--   2  time of the orchestrator, ms: what is issued by its clock later may count again
--   3  what is kept of it, JSON
--   4  who says so
--   5  why
-- RESULT: 1, or 0 where there is no such agent
local known = redis.call('HEXISTS', KEYS[2], ARGV[1]) + redis.call('HEXISTS', KEYS[3], ARGV[1])
  + redis.call('EXISTS', KEYS[4]) + redis.call('HEXISTS', KEYS[1], ARGV[1])
if known == 0 then
  return 0
end
local time = redis.call('TIME')
local now = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[2]))
local entry = '{"in_force":true,"at_ms":' .. string.format('%.0f', now) .. ',"said":' .. ARGV[3] .. '}'
redis.call('HSET', KEYS[1], ARGV[1], entry)
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[4])
redis.call('HDEL', KEYS[5], ARGV[1])
audit(KEYS[6], {'event', 'agent_revoked', 'agent_id', ARGV[1], 'authorized', '1', 'actor', ARGV[4], 'reason', ARGV[5]})
return 1
