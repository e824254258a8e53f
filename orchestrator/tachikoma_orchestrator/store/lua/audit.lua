-- Append an event to the audit trail.
--
-- KEYS
--   1  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      event  names and values of the event
-- RESULT: the event's number
return audit(KEYS[1], args.event)
