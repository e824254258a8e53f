-- Store an enrolment for its token. It replaces an earlier one of the same member.
--
-- KEYS
--   1  orch:enrolment:<agent>  enrolment that waits for its token (string)
--   2  orch:revoked            revocations (hash)
--   3  orch:audit              audit trail (stream)
--   4  agent.<agent>:info      the agent's lease; not given for a person
-- ARGV
--   1  JSON object
--      agent         agent id, or user/<name>
--      event         code of the audit event
--      agent_id      agent in the audit event; empty for a person
--      requested_by  SPIFFE ID of the person in the audit event; empty for an agent
--      ttl_ms        lifetime of the enrolment
--      by            SPIFFE ID of the operator
--      reason        reason in the audit event
--   2  the signed enrolment, stored as it is
-- RESULT: 1, or 0 if an agent of that id is online
local enrolment, revocations, trail, lease = unpack(KEYS)
local signed = ARGV[2]
if lease and redis.call('EXISTS', lease) == 1 and not revoked(revocations, args.agent) then
  return 0
end
if redis.call('GET', enrolment) == signed then
  return 1
end
redis.call('SET', enrolment, signed, 'PX', args.ttl_ms)
audit(trail, {
  'event', args.event, 'agent_id', args.agent_id, 'requested_by', args.requested_by, 'authorized', '1',
  'actor', args.by, 'reason', args.reason,
})
return 1
