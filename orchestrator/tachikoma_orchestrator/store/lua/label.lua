-- Store the labels that an operator bound to an agent, by compare-and-set, and audit the change.
--
-- KEYS
--   1  orch:labels              signed labels of agents (hash)
--   2  orch:labels:changes      agents by the number of the audit event of their last change (zset)
--   3  orch:audit               audit trail (stream)
--   4  orch:agents              agents that ever joined (hash)
--   5  orch:joined              agents that joined with a token (hash)
--   6  orch:enrolment:<agent>   enrolment that waits for its token (string)
-- ARGV
--   1  JSON object
--      agent   agent id
--      by      SPIFFE ID of the operator; empty if the same labels are signed or written again
--      reason  the change, for the audit event
--   2  the signed labels
--   3  the entry that they replace; empty for none
-- RESULT: DONE | CHANGED (another entry was stored meanwhile) | UNKNOWN (there is no such agent)
local labels, changes, trail, agents, joined, enrolment = unpack(KEYS)
local agent, signed, before = args.agent, ARGV[2], ARGV[3]
local stored = redis.call('HGET', labels, agent) or ''
if stored == signed then
  return 'DONE'
end
if stored ~= before then
  return 'CHANGED'
end
redis.call('ZCARD', changes)
if args.by ~= '' then
  local known = redis.call('HEXISTS', agents, agent) + redis.call('HEXISTS', joined, agent)
    + redis.call('EXISTS', enrolment)
  if known == 0 then
    return 'UNKNOWN'
  end
  audit(trail, {
    'event', 'agent_labelled', 'agent_id', agent, 'authorized', '1', 'actor', args.by, 'reason', args.reason,
  })
end
redis.call('HSET', labels, agent, signed)
redis.call('ZADD', changes, redis.call('GET', trail .. ':seq') or '0', agent)
return 'DONE'
