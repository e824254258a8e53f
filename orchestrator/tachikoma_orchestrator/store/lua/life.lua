-- Store the record of a life of Redis, if the stored record is still the one that was read.
--
-- KEYS
--   1  orch:life             signed record of the current life (string)
--   2  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      after  largest event number that was seen; the trail continues after it
--      event  names and values of the audit event; an empty list for a record that is only signed again
--   2  the new record, stored as it is
--   3  the record that was read; empty for none, or a value of another type
-- RESULT: 1, or 0 if another orchestrator was first
local life, trail = unpack(KEYS)
local stored = redis.pcall('GET', life)
if type(stored) ~= 'string' then
  stored = ''
end
if stored ~= ARGV[3] then
  return 0
end
if #args.event > 0 then
  continue_after(trail, args.after)
  audit(trail, args.event)
end
redis.call('SET', life, ARGV[2])
return 1
