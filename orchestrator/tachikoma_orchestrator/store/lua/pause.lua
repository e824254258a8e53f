-- Pause or resume a schedule. The audit trail gets an event if that is a change.
--
-- KEYS
--   1  orch:schedule:<name>  progress of the schedule (hash)
--   2  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      pause   true to pause the schedule, false to resume it
--      by      SPIFFE ID of the operator
--      reason  the operator's reason
--      event   names and values of the audit event
-- RESULT: 1, or 0 if nothing changed
local schedule, trail = unpack(KEYS)
local now = text(clock())
local version, since, resumed = unpack(redis.call('HMGET', schedule, 'version', 'paused_ms', 'resumed_ms'))
local paused = since and not resumed or false
if paused == args.pause then
  return 0
end
if args.pause then
  redis.call('HSET', schedule, 'paused_ms', now, 'paused_by', args.by, 'pause_reason', args.reason)
  redis.call('HDEL', schedule, 'resumed_ms')
else
  redis.call('HSET', schedule, 'resumed_ms', now)
end
redis.call('HSET', schedule, 'version', text((version or 0) + 1))
audit(trail, args.event)
return 1
