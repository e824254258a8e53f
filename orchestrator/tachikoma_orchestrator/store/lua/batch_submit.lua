-- Record a batch with its frozen list of targets.
--
-- KEYS
--   1  orch:batch:<id>          the batch (hash)
--   2  orch:batch:<id>:pending  its targets by their place in the list (zset)
--   3  orch:batches             all batches by time (zset)
--   4  orch:batches:open        batches of which something may still start or run (set)
--   5  orch:batches:changed     channel for ids of batches that changed
-- ARGV
--   1  JSON object
--      id       batch id
--      digest   digest of the request and its targets
--      state    RUNNING, or PENDING_APPROVAL
--      fields   names and values of further fields of the hash
--      targets  agents in the order in which they start
--      most     most open batches
--      most_of_requester  most open batches of one requester
--      requested_by       SPIFFE ID of the requester
--      wait_ms  time until the deadline, or the longest wait for the approval
--      reason   number of targets and their short form, for the audit event
--   2  the signed batch
-- RESULT: ADMITTED | DUPLICATE (same id, same digest) | CONFLICT (same id, another digest) | FULL (too many are open)
--   | REQUESTER_FULL (too many of this requester are open)
local batch, pending, batches, open, changed = unpack(KEYS)
local now = clock()
local known = redis.call('HGET', batch, 'digest')
if known then
  return known == args.digest and 'DUPLICATE' or 'CONFLICT'
end
local ids, own = redis.call('SMEMBERS', open), 0
if #ids >= args.most then
  return 'FULL'
end
-- They are counted, not kept as a number: a count of their own could differ from the batches after a loss.
if #ids >= args.most_of_requester then
  for _, id in ipairs(ids) do
    -- A batch that was tampered with holds back no other.
    own = own + (redis.pcall('HGET', (batch_keys(id)), 'requested_by') == args.requested_by and 1 or 0)
  end
end
if own >= args.most_of_requester then
  return 'REQUESTER_FULL'
end
redis.call('ZCARD', batches)
local fields = {
  'digest', args.digest, 'state', args.state, 'failures', 0, 'total', #args.targets, 'signed', ARGV[2],
  'submitted_ms', text(now), 'deadline_ms', text(now + args.wait_ms),
}
extend(fields, args.fields)
redis.call('HSET', batch, unpack(fields))
audit_batch(args.id, 'batch_submitted', args.reason, args.digest, '')
for place, agent in ipairs(args.targets) do
  redis.call('ZADD', pending, place - 1, agent)
end
redis.call('ZADD', batches, now, args.id)
redis.call('SADD', open, args.id)
redis.call('PUBLISH', changed, args.id)
return 'ADMITTED'
