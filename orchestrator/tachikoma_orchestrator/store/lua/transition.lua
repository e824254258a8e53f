-- Change an execution's state by compare-and-set, with its audit event. The only script that moves a state.
--
-- The same change may come again: where the answer to the first was lost, or where what goes with it in one transaction
-- was unknown to Redis. It is then told as done, as it was, and nothing is changed.
--
-- KEYS
--   1  orch:exec:<id>               ledger record (hash)
--   2  orch:audit                   audit trail (stream)
--   3  orch:open                    executions not ended, by deadline (zset)
--   4  orch:ended                   channel for ids of executions that ended
--   5  agent.<agent>:claim:<id>     claim (string)
--   6  orch:approvals               executions that wait for an approval (zset)
--   7  orch:parked:<id>             the request that waits for an approval (string)
--   8  orch:approved                channel for ids of executions that were approved
-- ARGV
--   1  execution id
--   2  states it may be in, separated by commas
--   3  new state; empty leaves the state as it is
--   4  '1' if the new state is terminal
--   5  fence: take the claim with this value first, so that the agent can never start it; empty for none
--   6  seconds to keep the record once it has ended, and the fence
--   7  SHA-256 of the order the change rests on; empty to not compare
--   8  how long it may wait from now on, ms; 0 leaves its deadline as it is
--   9  when it started, ms, where the change tells of its end: the start is put on the record if it was not; else empty
--  10  agent id
--  11  names this change, and no other of this execution
--  12  number of record fields to set; then so many names and values
--   then names and values of the audit event; none for no event
-- RESULT: {outcome, state, ms}; outcome is
--   DONE | MISSING (that agent has no such execution) | STATE (it is in another state) | CLAIMED (the fence came too late)
--   | ORDER (another order)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local change = 'change:' .. ARGV[3]
local state, agent, done = unpack(redis.call('HMGET', KEYS[1], 'state', 'agent', change))
if not state or agent ~= ARGV[10] then
  -- An agent may say what it likes, but only of its own executions.
  return {'MISSING', '', now}
end
if done == ARGV[11] then
  return {'DONE', state, now}
end
if not string.find(',' .. ARGV[2] .. ',', ',' .. state .. ',', 1, true) then
  return {'STATE', state, now}
end
if ARGV[7] ~= '' and redis.call('HGET', KEYS[1], 'order_sha256') ~= ARGV[7] then
  return {'ORDER', state, now}
end
if ARGV[5] ~= '' then
  local claimed = redis.call('SET', KEYS[5], ARGV[5], 'NX', 'EX', ARGV[6])
  if not claimed and redis.call('GET', KEYS[5]) ~= ARGV[5] then
    return {'CLAIMED', state, now}
  end
end

local last = 12 + 2 * tonumber(ARGV[12])
local fields = {change, ARGV[11]}
for i = 13, last do
  fields[#fields + 1] = ARGV[i]
end
-- Its events come first: where they cannot be written, nothing is changed.
local history = redis.call('HGET', KEYS[1], 'history')
if state == 'QUEUED' and ARGV[9] ~= '' then
  -- The agent's notice was overtaken by its receipt.
  history = history .. ';STARTED ' .. now
  local started = {'event', 'started', 'id', ARGV[1], 'agent_id', agent, 'authorized', '1'}
  audit_execution(KEYS[2], KEYS[1], started)
end
if #ARGV > last then
  local event = {}
  for i = last + 1, #ARGV do
    event[#event + 1] = ARGV[i]
  end
  audit_execution(KEYS[2], KEYS[1], event)
end
if ARGV[3] ~= '' then
  fields[#fields + 1] = 'state'
  fields[#fields + 1] = ARGV[3]
  fields[#fields + 1] = 'history'
  fields[#fields + 1] = history .. ';' .. ARGV[3] .. ' ' .. now
end
if ARGV[4] == '1' then
  fields[#fields + 1] = 'settled_ms'
  fields[#fields + 1] = now
end
if tonumber(ARGV[8]) > 0 then
  fields[#fields + 1] = 'deadline_ms'
  fields[#fields + 1] = now + tonumber(ARGV[8])
  redis.call('ZADD', KEYS[3], now + tonumber(ARGV[8]), ARGV[1])
end
redis.call('HSET', KEYS[1], unpack(fields))
if state == 'PENDING_APPROVAL' and ARGV[3] ~= '' then
  redis.call('ZREM', KEYS[6], ARGV[1])
  redis.call('DEL', KEYS[7])
  if ARGV[3] == 'QUEUED' then
    redis.call('PUBLISH', KEYS[8], ARGV[1])
  end
end
if ARGV[3] ~= '' and ARGV[3] ~= 'QUEUED' then
  -- Given back here and nowhere else; twice does no harm. The names are those that admission took.
  for scope in string.gmatch(redis.call('HGET', KEYS[1], 'scopes') or '', '%S+') do
    redis.call('SREM', 'orch:waiting:' .. scope, ARGV[1])
    if ARGV[4] == '1' then
      redis.call('SREM', 'orch:open:' .. scope, ARGV[1])
    end
  end
end
if ARGV[4] == '1' then
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('PUBLISH', KEYS[4], ARGV[1])
end
return {'DONE', ARGV[3] ~= '' and ARGV[3] or state, now}
