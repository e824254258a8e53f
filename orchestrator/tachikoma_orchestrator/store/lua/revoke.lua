-- Revoke an agent or a person and audit that. A repetition moves the time of the revocation to now.
--
-- KEYS
--   1  orch:revoked            revocations of agents (hash)
--   2  orch:agents             agents that ever joined (hash)
--   3  orch:joined             agents that joined with a token (hash); for a person orch:users
--   4  orch:enrolment:<agent>  enrolment that waits for its token (string)
--   5  orch:online             agents that joined and did not leave (hash)
--   6  orch:audit              audit trail (stream)
-- ARGV
--   1  JSON object
--      agent         agent id, or user/<name>
--      event         code of the audit event
--      agent_id      agent in the audit event; empty for a person
--      requested_by  SPIFFE ID of the person in the audit event; empty for an agent
--      now_ms        time of the orchestrator, ms; certificates that it issues later are valid again after a join
--      entry         JSON stored for the revocation
--      by            SPIFFE ID of the operator
--      reason        the operator's reason
-- RESULT: 1, or 0 if there is no such agent
local revocations, agents, joined, enrolment, online, trail = unpack(KEYS)
local agent = args.agent
local known = redis.call('HEXISTS', agents, agent) + redis.call('HEXISTS', joined, agent)
  + redis.call('EXISTS', enrolment) + redis.call('HEXISTS', revocations, agent)
-- A person may have an identity from another source, of which nothing is known here.
if known == 0 and args.agent_id ~= '' then
  return 0
end
local at_ms = text(math.max(clock(), args.now_ms))
redis.call('HSET', revocations, agent, '{"active":true,"at_ms":' .. at_ms .. ',"details":' .. args.entry .. '}')
redis.call('HDEL', joined, agent)
redis.call('DEL', enrolment)
redis.call('HDEL', online, agent)
audit(trail, {
  'event', args.event, 'agent_id', args.agent_id, 'requested_by', args.requested_by, 'authorized', '1',
  'actor', args.by, 'reason', args.reason,
})
return 1
