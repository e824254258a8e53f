-- Put the order of an admitted execution on its agent's queue, once. No other script writes to a queue.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  agent.<agent>         the agent's queue (list; BRPOP takes from the right end)
--   3  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      id            execution id
--      agent         agent id
--      digest        digest of the request that the order is for
--      order_sha256  SHA-256 of the order
--      policy        name@digest of the policy that granted it
--      life          number of the life of Redis that the order names, as text
--   2  Celery message. It is bytes, and stored as it is.
-- RESULT: 1, or 0 if the execution does not wait for this order: refused, another request, completed or dispatched
local execution, queue, trail = unpack(KEYS)
local record = redis.call('HMGET', execution, 'digest', 'state', 'dispatched_ms', unpack(AUDITED_FIELDS))
local digest, state, dispatched = unpack(record, 1, 3)
if digest ~= args.digest or state ~= 'QUEUED' or dispatched then
  return 0
end
local requested_by, command, client_ip, _, batch = unpack(record, 4, 3 + #AUDITED_FIELDS)
-- A queue of another type is an error before anything is written.
redis.call('LLEN', queue)
-- The event is written first: if it cannot be written, no order is on the queue.
audit_execution_of(trail, {requested_by, command, client_ip, args.policy, batch}, {
  'event', 'dispatched', 'id', args.id, 'agent_id', args.agent, 'authorized', '1', 'evidence_sha256', args.order_sha256,
})
redis.call(
  'HSET', execution,
  'policy', args.policy, 'dispatched_ms', clock(), 'order_sha256', args.order_sha256, 'life', args.life
)
redis.call('LPUSH', queue, ARGV[2])
return 1
