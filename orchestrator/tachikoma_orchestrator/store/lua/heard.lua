-- Store an agent's heartbeat, and audit the first one of each run of its worker.
--
-- KEYS
--   1  orch:agents           agents that ever joined (hash)
--   2  orch:online           agents that joined and did not leave, with the run of their last heartbeat (hash)
--   3  orch:audit            audit trail (stream)
--   4  orch:revoked          revocations of agents (hash)
-- ARGV
--   1  JSON object
--      agent   agent id
--      run     random id of the run of its worker
--      reason  reason in the audit event
--   2  the heartbeat as JSON, stored as it is
-- RESULT: 1, or 0 if the agent is revoked
local agents, online, trail, revocations = unpack(KEYS)
local agent = args.agent
if revoked(revocations, agent) then
  return 0
end
redis.call('HSET', agents, agent, '{"seen_ms":' .. text(clock()) .. ',"heartbeat":' .. ARGV[2] .. '}')
if redis.call('HGET', online, agent) ~= args.run then
  redis.call('HSET', online, agent, args.run)
  audit(trail, {'event', 'agent_joined', 'agent_id', agent, 'authorized', '1', 'reason', args.reason})
end
return 1
