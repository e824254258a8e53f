-- Put the order of an admitted execution on its agent's queue: the only way there, and once for each execution.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  agent.<agent>         the agent's queue (list; BRPOP takes from the right end)
--   3  orch:audit            audit trail (stream)
-- ARGV
--   1  execution id
--   2  agent id
--   3  digest of the request that the order is for
--   4  SHA-256 of the order
--   5  name@digest of the policy that granted it
--   6  Celery message
-- RESULT: 1, or 0 where it does not wait for its order: refused, another request, ended or dispatched before
local digest, state, dispatched = unpack(redis.call('HMGET', KEYS[1], 'digest', 'state', 'dispatched_ms'))
if digest ~= ARGV[3] or state ~= 'QUEUED' or dispatched then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The event comes before what it tells of: where it cannot be written, the order is on no queue.
redis.call('HSET', KEYS[1], 'policy', ARGV[5])
local event = {'event', 'dispatched', 'id', ARGV[1], 'agent_id', ARGV[2], 'authorized', '1', 'evidence_sha256', ARGV[4]}
audit_execution(KEYS[3], KEYS[1], event)
redis.call('HSET', KEYS[1], 'dispatched_ms', now, 'order_sha256', ARGV[4])
redis.call('LPUSH', KEYS[2], ARGV[6])
return 1
