-- Let the numbers of the audit trail continue after the last number that was seen, if Redis lost that event.
--
-- KEYS
--   1  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      after  largest event number that was seen
-- RESULT: how many numbers were passed over
return continue_after(KEYS[1], args.after)
