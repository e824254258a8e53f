-- Use an enrolment: of all callers that show its token, one joins. A join ends the revocation.
--
-- KEYS
--   1  orch:enrolment:<agent>  enrolment that waits for its token (string)
--   2  orch:joined             agents that joined with a token (hash); for a person orch:users
--   3  orch:revoked            revocations of agents (hash)
--   4  orch:audit              audit trail (stream)
--   5  orch:labels             signed labels of agents (hash)
--   6  orch:labels:changes     agents by the number of the audit event of their last change (zset)
-- ARGV
--   1  JSON object
--      agent               agent id, or user/<name>
--      event               code of the audit event
--      agent_id            agent in the audit event; empty for a person
--      requested_by        SPIFFE ID of the person in the audit event; empty for an agent
--      entry               JSON stored for the member
--      by                  SPIFFE ID of the operator that enrolled the member
--      address             address of the caller
--      reason              reason in the audit event
--      certificate_sha256  SHA-256 of the certificate
--      labels              the labels that it binds, in words
--   2  the signed enrolment that was verified
--   3  the signed labels that it binds; empty if they stay as they are
--   4  the signed labels that they replace; empty for none
-- RESULT: JOINED | REFUSED (the enrolment was used, replaced or revoked meanwhile) | LABELS (an operator changed the
--   labels of the agent meanwhile; nothing was changed)
local enrolment, joined, revocations, trail, labels, changes = unpack(KEYS)
local agent = args.agent
if redis.call('GET', enrolment) ~= ARGV[2] then
  -- A call that is repeated because its answer was lost stores the same entry.
  return redis.call('HGET', joined, agent) == args.entry and 'JOINED' or 'REFUSED'
end
if ARGV[3] ~= '' and (redis.call('HGET', labels, agent) or '') ~= ARGV[4] then
  -- The signed labels have a time. Later ones that are stored already would stay active where they are known.
  return 'LABELS'
end
redis.call('DEL', enrolment)
redis.call('HSET', joined, agent, args.entry)
local entry = redis.call('HGET', revocations, agent)
if entry then
  -- The time of the revocation is kept: certificates issued before it stay invalid.
  redis.call('HSET', revocations, agent, (string.gsub(entry, '^{"active":true', '{"active":false', 1)))
end
audit(trail, {
  'event', args.event, 'agent_id', args.agent_id, 'requested_by', args.requested_by, 'authorized', '1',
  'actor', args.by, 'client_ip', args.address,
  'reason', args.reason, 'evidence_sha256', args.certificate_sha256,
})
if ARGV[3] ~= '' then
  audit(trail, {
    'event', 'agent_labelled', 'agent_id', agent, 'authorized', '1', 'actor', args.by, 'reason', args.labels,
  })
  redis.call('HSET', labels, agent, ARGV[3])
  redis.call('ZADD', changes, written[1], agent)
end
return 'JOINED'
