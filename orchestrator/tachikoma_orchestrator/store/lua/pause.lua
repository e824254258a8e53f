-- Pause a schedule, or let it go on; on the record where that changes anything.
--
-- KEYS
--   1  orch:schedule:<name>  how far it is (hash)
--   2  orch:audit            audit trail (stream)
-- ARGV
--   1  'pause' or 'resume'
--   2  who says so
--   3  why
--   then words of the audit event
-- RESULT: 1, or 0 where it was so before
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local version, since, resumed = unpack(redis.call('HMGET', KEYS[1], 'version', 'paused_ms', 'resumed_ms'))
local paused = since and not resumed
if paused == (ARGV[1] == 'pause') then
  return 0
end
if ARGV[1] == 'pause' then
  redis.call('HSET', KEYS[1], 'paused_ms', now, 'paused_by', ARGV[2], 'pause_reason', ARGV[3])
  redis.call('HDEL', KEYS[1], 'resumed_ms')
else
  redis.call('HSET', KEYS[1], 'resumed_ms', now)
end
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', (version or 0) + 1))
local event = {}
for i = 4, #ARGV do
  event[#event + 1] = ARGV[i]
end
audit(KEYS[2], event)
return 1
