-- Drain an agent, so that it takes no new executions, or resume it. The audit trail gets an event if that is a change.
--
-- KEYS
--   1  orch:draining         agents that take no new executions (hash)
--   2  orch:agents           agents that ever joined (hash)
--   3  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      agent   agent id
--      drain   true to drain the agent, false to resume it
--      entry   JSON stored for a drained agent
--      by      SPIFFE ID of the operator
--      reason  the operator's reason
-- RESULT: 1, or 0 if there is no such agent
local draining, agents, trail = unpack(KEYS)
if redis.call('HEXISTS', agents, args.agent) == 0 then
  return 0
end
local code
if args.drain then
  code = redis.call('HSETNX', draining, args.agent, args.entry) == 1 and 'agent_drained'
else
  code = redis.call('HDEL', draining, args.agent) == 1 and 'agent_resumed'
end
if code then
  audit(trail, {
    'event', code, 'agent_id', args.agent, 'authorized', '1', 'actor', args.by, 'reason', args.reason,
  })
end
return 1
