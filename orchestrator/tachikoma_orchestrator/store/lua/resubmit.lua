-- Put what an ended submitter had taken and not finished back on its queues, once.
--
-- KEYS
--   1  orch:submitters             runs of submitters, by the time each was last alive (zset)
--   2  orch:unacked:<run>          messages it had taken (hash)
--   3  orch:unacked:<run>:index    the same, by time (zset)
--   4… queues
-- ARGV
--   1  the run
--   2… for each queue: how many messages, and these
-- RESULT: 1, or 0 where another submitter has done it
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
  return 0
end
local at = 2
for number = 4, #KEYS do
  local count = tonumber(ARGV[at])
  for place = at + 1, at + count do
    -- At the end that is read next: they have waited longest.
    redis.call('RPUSH', KEYS[number], ARGV[place])
  end
  at = at + count + 1
end
redis.call('DEL', KEYS[2], KEYS[3])
return 1
