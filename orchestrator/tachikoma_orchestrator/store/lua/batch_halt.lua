-- Let no further target of a batch start: it was cancelled or rejected, its deadline passed, or its canary
-- or a health gate did not succeed.
--
-- KEYS
--   1  orch:batch:<id>  the batch (hash); the other names are made in `batches.lua`
-- ARGV
--   1  JSON object
--      id        batch id
--      state     CANCELLED, EXPIRED, REJECTED or STOPPED
--      code      code of the audit event
--      reason    why, in words
--      actor     SPIFFE ID of the caller who cancelled or rejected; empty for none
--      evidence  SHA-256 of the receipt that it rests on; empty for none
--      waiting   true to halt the batch only while it waits for its approval
-- RESULT: 1, or 0 if the batch was not running
if args.waiting and redis.call('HGET', KEYS[1], 'state') ~= 'PENDING_APPROVAL' then
  return 0
end
return halt_batch(args.id, args.state, args.code, args.reason, args.evidence, args.actor, clock()) and 1 or 0
