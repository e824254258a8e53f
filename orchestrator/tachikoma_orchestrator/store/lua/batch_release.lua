-- Release the next wave of a batch, once: by compare-and-set of the place up to which targets may start.
--
-- KEYS
--   1  orch:batch:<id>          the batch (hash)
--   2  orch:batch:<id>:running  agents whose execution has not ended (set)
--   3  orch:batches:changed     channel for ids of batches that changed
-- ARGV
--   1  JSON object
--      id        batch id
--      released  the place as the caller read it
--      next      the new place; the same place begins the pause before the next wave
--      reason    which targets, for the audit event
--      evidence  SHA-256 of the receipt that it rests on; empty for none
-- RESULT: 1, or 0 if the batch has changed since
local batch, running, changed = unpack(KEYS)
local state, released = unpack(redis.call('HMGET', batch, 'state', 'released'))
if state ~= 'RUNNING' or tonumber(released) ~= args.released or redis.call('SCARD', running) > 0 then
  return 0
end
if args.next == args.released then
  return redis.call('HSETNX', batch, 'paused_ms:' .. released, text(clock()))
end
redis.call('HSET', batch, 'released', args.next)
audit_batch(args.id, 'batch_wave', args.reason, args.evidence, '')
redis.call('PUBLISH', changed, args.id)
return 1
