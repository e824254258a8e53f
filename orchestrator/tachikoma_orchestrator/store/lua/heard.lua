-- Keep an agent's heartbeat, and put on the record that it joined.
--
-- KEYS
--   1  orch:agents           agents ever heard of (hash)
--   2  orch:online           agents that joined and did not leave, with the run they were heard of (hash)
--   3  orch:audit            audit trail (stream)
--   4  orch:revoked          agents that were cut off (hash)
-- ARGV
--   1  agent id
--   2  its heartbeat, JSON
--   3  the run of its worker
--   4  what the event says of it
-- RESULT: 1, or 0 where it is cut off
if revoked(KEYS[4], ARGV[1]) then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], '{"seen_ms":' .. string.format('%.0f', now) .. ',"heartbeat":' .. ARGV[2] .. '}')
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[3] then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
  audit(KEYS[3], {'event', 'agent_joined', 'agent_id', ARGV[1], 'authorized', '1', 'reason', ARGV[4]})
end
return 1
