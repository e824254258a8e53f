-- Let the numbers of the audit trail continue after the last number that was seen, if Redis went back behind it.
--
-- KEYS
--   1  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      after  largest event number that was seen
-- RESULT: how many numbers were passed over
local seq = KEYS[1] .. ':seq'
local missing = args.after - (tonumber(redis.call('GET', seq)) or 0)
if missing <= 0 then
  return 0
end
redis.call('INCRBY', seq, text(missing))
return missing
