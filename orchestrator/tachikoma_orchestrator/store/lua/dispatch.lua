-- Put the order of a recorded execution on its agent's queue, once. `admit.lua` does so in the same step, unless
-- something must confirm the admission before.
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
--      order         {sha256, policy, life}: SHA-256 of the order, name@digest of the policy that granted it, and the
--                    number of the life of Redis that it names, as text
--   2  Celery message. It is bytes, and stored as it is.
-- RESULT: 1, or 0 if the execution does not wait for this order: refused, another request, completed or dispatched
local execution, queue, trail = unpack(KEYS)
return dispatch(execution, queue, trail, args.id, args.agent, args.digest, args.order, ARGV[2])
