-- Account for due times of a schedule, if nobody else has meanwhile: each is on the record from here on.
--
-- KEYS
--   1  orch:schedule:<name>         how far it is (hash)
--   2  orch:schedule:<name>:runs    what became of its due times (hash)
--   3  orch:schedule:<name>:order   the same by time (zset)
--   4  orch:schedules               schedules ever looked at (hash)
--   5  orch:audit                   audit trail (stream)
-- ARGV
--   1  the schedule's name
--   2  version of what was looked at; 0 where there was nothing
--   3  the time up to which it is accounted for from now on, ms
--   4  the rule of its due times from then on; empty for none
--   5  most runs kept
--   6  the execution that is under way with this; empty where none is
--   7  number of runs; then for each its id, its time in ms, '1' where it is about to be asked for, what is kept of it
--      (JSON), number of words of its audit event (0 for no event), and so many words
-- RESULT: 1, or 0 where somebody else was there first
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[4], ARGV[1], 1)
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', version + 1), 'cursor_ms', ARGV[3], 'rule', ARGV[4])
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[1], 'last_exec', ARGV[6])
end
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  local id, words = ARGV[at], tonumber(ARGV[at + 4])
  redis.call('HSET', KEYS[2], id, ARGV[at + 3])
  redis.call('ZADD', KEYS[3], ARGV[at + 1], id)
  if ARGV[at + 2] == '1' then
    redis.call('HSET', KEYS[1], 'taken:' .. id, ARGV[at + 3])
  end
  if words > 0 then
    local event = {}
    for i = at + 5, at + 4 + words do
      event[#event + 1] = ARGV[i]
    end
    audit(KEYS[5], event)
  end
  at = at + 5 + words
end
local more = redis.call('ZCARD', KEYS[3]) - tonumber(ARGV[5])
if more > 0 then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, more - 1)) do
    redis.call('HDEL', KEYS[2], id)
    redis.call('ZREM', KEYS[3], id)
  end
end
return 1
