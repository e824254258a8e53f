-- Store an enrolment for its token. It replaces an earlier one of the same agent.
--
-- KEYS
--   1  orch:enrolment:<agent>  enrolment that waits for its token (string)
--   2  agent.<agent>:info      the agent's lease
--   3  orch:revoked            revocations of agents (hash)
--   4  orch:audit              audit trail (stream)
-- ARGV
--   1  JSON object
--      agent   agent id
--      ttl_ms  lifetime of the enrolment
--      by      SPIFFE ID of the operator
--      reason  reason in the audit event
--   2  the signed enrolment, stored as it is
-- RESULT: 1, or 0 if an agent of that id is online
local enrolment, lease, revocations, trail = unpack(KEYS)
local signed = ARGV[2]
if redis.call('EXISTS', lease) == 1 and not revoked(revocations, args.agent) then
  return 0
end
if redis.call('GET', enrolment) == signed then
  return 1
end
redis.call('SET', enrolment, signed, 'PX', args.ttl_ms)
audit(trail, {
  'event', 'agent_enrolled', 'agent_id', args.agent, 'authorized', '1', 'actor', args.by, 'reason', args.reason,
})
return 1
