-- Audit that an agent left, once.
--
-- KEYS
--   1  agent.<agent>:info    the agent's lease
--   2  orch:online           agents that joined and did not leave (hash)
--   3  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      agent  agent id
-- RESULT: 1, or 0 if the agent is online, or its leave was audited before
local lease, online, trail = unpack(KEYS)
if redis.call('EXISTS', lease) == 1 or redis.call('HDEL', online, args.agent) == 0 then
  return 0
end
audit(trail, {'event', 'agent_left', 'agent_id', args.agent, 'authorized', '1', 'reason', 'its lease ended'})
return 1
