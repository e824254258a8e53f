-- Approve a batch, whose targets then start.
--
-- KEYS
--   1  orch:batch:<id>       the batch (hash)
--   2  orch:batches:changed  channel for ids of batches that changed
-- ARGV
--   1  JSON object
--      id       batch id
--      by       SPIFFE ID of the approver
--      reason   the approver's reason
--      digest   digest of what was approved
--      wait_ms  time from now until the deadline
--   2  the signed approval
-- RESULT: 1, or 0 if the batch does not wait for an approval any more
local batch, changed = unpack(KEYS)
local now = clock()
local state, deadline = unpack(redis.call('HMGET', batch, 'state', 'deadline_ms'))
if state ~= 'PENDING_APPROVAL' or now >= tonumber(deadline) then
  return 0
end
audit_batch(args.id, 'batch_approved', args.reason, args.digest, args.by)
redis.call(
  'HSET', batch, 'state', 'RUNNING', 'deadline_ms', text(now + args.wait_ms), 'approval', ARGV[2],
  'approved_by', args.by, 'approval_reason', args.reason
)
redis.call('PUBLISH', changed, args.id)
return 1
