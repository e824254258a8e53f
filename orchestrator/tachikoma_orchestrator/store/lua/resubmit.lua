-- Return the unfinished messages of a submitter that ended to their queues, once.
--
-- KEYS
--   1  orch:submitters             runs of submitters, by the time of their last sign of life (zset)
--   2  orch:unacked:<run>          messages that the run had taken (hash)
--   3  orch:unacked:<run>:index    the same, by time (zset)
--   then the queues, in the order of `counts`
-- ARGV
--   1  JSON object
--      run     id of the run
--      counts  list with the number of messages of each queue
--   then all messages, those of the first queue first. They are bytes, and stored as they are.
-- RESULT: 1; 0 if another submitter was first; 2 if a queue is no list, and nothing was changed
local FIXED_KEYS = 3
local submitters, unacked, index = unpack(KEYS, 1, FIXED_KEYS)
for number = 1, #args.counts do
  -- An error of RPUSH would come after the run was removed, and strand its messages.
  local length = redis.pcall('LLEN', KEYS[FIXED_KEYS + number])
  if type(length) == 'table' and string.find(length.err, 'WRONGTYPE', 1, true) then
    return 2
  end
end
if redis.call('ZREM', submitters, args.run) == 0 then
  return 0
end
local message = 1
for number, count in ipairs(args.counts) do
  for _ = 1, count do
    message = message + 1
    -- At the end that is read next: these messages have waited longest.
    redis.call('RPUSH', KEYS[FIXED_KEYS + number], ARGV[message])
  end
end
redis.call('DEL', unacked, index)
return 1
