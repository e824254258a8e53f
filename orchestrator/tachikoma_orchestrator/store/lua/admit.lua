-- Admit a request: check, record and audit it, together or not at all. It then waits for `dispatch.lua`, or for somebody's
-- approval.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  agent.<agent>:info    the agent's lease; it is offline where this is missing
--   3  agent.<agent>         the agent's queue (list)
--   4  orch:audit            audit trail (stream)
--   5  orch:agents           agents ever heard of (hash)
--   6  orch:index            executions by time (zset)
--   7  orch:index:<agent>    executions of the agent by time (zset)
--   8  orch:open             executions not ended, by deadline (zset)
--   9  orch:approvals        executions that wait for an approval, by deadline (zset)
--  10  orch:parked:<id>      the request that waits for an approval (string)
--  11  orch:draining         agents that take no new executions (hash)
--  12  orch:revoked          agents that were cut off (hash)
--   then for each scope that has limits
--      orch:rate:<scope>     executions by time of acceptance, for a minute (zset)
--      orch:open:<scope>     executions not ended (set)
--      orch:waiting:<scope>  executions not started (set)
-- ARGV
--   1  execution id
--   2  agent id
--   3  digest of the request
--   4  most orders that may wait on the queue
--   5  how long it may wait, ms
--   6  the signed request, where it needs an approval; else empty
--   7  most executions that may wait for an approval
--   8  number of scopes; then for each its name, most accepted in any minute, most not ended, most not started; 0: any
--   then number of record fields, and so many names and values
--   then names and values of the audit event, without its code
-- RESULT: {outcome, ms, ms after which a repetition may succeed or 0}; outcome is
--   ADMITTED | DUPLICATE (same id, same request) | CONFLICT (same id, another request)
--   | UNKNOWN (agent never heard of) | OFFLINE | DRAINING | REVOKED | FULL (queue) | APPROVALS (too many wait for one)
--   | RATE | CONCURRENT | WAITING (of a scope)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local parked = ARGV[6] ~= ''
local known = redis.call('HGET', KEYS[1], 'digest')
if known == ARGV[3] then
  return {'DUPLICATE', now, 0}
end

local outcome = 'ADMITTED'
if known then
  outcome = 'CONFLICT'
elseif revoked(KEYS[12], ARGV[2]) then
  outcome = 'REVOKED'
elseif redis.call('EXISTS', KEYS[2]) == 0 then
  outcome = redis.call('HEXISTS', KEYS[5], ARGV[2]) == 1 and 'OFFLINE' or 'UNKNOWN'
elseif redis.call('HEXISTS', KEYS[11], ARGV[2]) == 1 then
  outcome = 'DRAINING'
elseif redis.call('LLEN', KEYS[3]) >= tonumber(ARGV[4]) then
  outcome = 'FULL'
elseif parked and redis.call('ZCARD', KEYS[9]) >= tonumber(ARGV[7]) then
  outcome = 'APPROVALS'
end

local minute = 60000
local retry = 0
local scopes = tonumber(ARGV[8])
local function limit(scope, which)
  return tonumber(ARGV[9 + 4 * scope + which])
end
for scope = 0, scopes - 1 do
  local rate, open, waiting = KEYS[13 + 3 * scope], KEYS[14 + 3 * scope], KEYS[15 + 3 * scope]
  if outcome == 'ADMITTED' and limit(scope, 1) > 0 then
    redis.call('ZREMRANGEBYSCORE', rate, '-inf', now - minute)
    local accepted = redis.call('ZCARD', rate)
    if accepted >= limit(scope, 1) then
      outcome = 'RATE'
      -- When enough of those accepted are a minute old, also if the limit was lowered meanwhile.
      local at = accepted - limit(scope, 1)
      retry = redis.call('ZRANGE', rate, at, at, 'WITHSCORES')[2] + minute - now + 1
    end
  end
  if outcome == 'ADMITTED' and limit(scope, 2) > 0 and redis.call('SCARD', open) >= limit(scope, 2) then
    outcome = 'CONCURRENT'
  end
  if outcome == 'ADMITTED' and limit(scope, 3) > 0 and redis.call('SCARD', waiting) >= limit(scope, 3) then
    outcome = 'WAITING'
  end
end

local fields = 9 + 4 * scopes
local last = fields + 2 * tonumber(ARGV[fields])
local code = parked and 'approval_requested' or 'admitted'
local nowhere = { CONFLICT = true, UNKNOWN = true, OFFLINE = true, DRAINING = true, REVOKED = true }
if nowhere[outcome] then
  code = 'refused'
elseif outcome ~= 'ADMITTED' then
  code = 'limited'
end
local event = {'event', code}
for i = last + 1, #ARGV do
  event[#event + 1] = ARGV[i]
end
if outcome ~= 'ADMITTED' then
  event[#event + 1] = 'reason'
  event[#event + 1] = outcome
end
audit(KEYS[4], event)
if outcome ~= 'ADMITTED' then
  return {outcome, now, retry}
end

local deadline = now + tonumber(ARGV[5])
local state = parked and 'PENDING_APPROVAL' or 'QUEUED'
local record = {
  'digest', ARGV[3], 'state', state, 'agent', ARGV[2],
  'admitted_ms', now, 'deadline_ms', deadline, 'history', state .. ' ' .. now,
}
for i = fields + 1, last do
  record[#record + 1] = ARGV[i]
end
local names = {}
for scope = 0, scopes - 1 do
  local rate, open, waiting = KEYS[13 + 3 * scope], KEYS[14 + 3 * scope], KEYS[15 + 3 * scope]
  names[#names + 1] = ARGV[9 + 4 * scope]
  redis.call('ZADD', rate, now, ARGV[1])
  redis.call('PEXPIRE', rate, minute)
  redis.call('SADD', open, ARGV[1])
  redis.call('SADD', waiting, ARGV[1])
end
if scopes > 0 then
  record[#record + 1] = 'scopes'
  record[#record + 1] = table.concat(names, ' ')
end
redis.call('HSET', KEYS[1], unpack(record))
redis.call('ZADD', KEYS[6], now, ARGV[1])
redis.call('ZADD', KEYS[7], now, ARGV[1])
redis.call('ZADD', KEYS[8], deadline, ARGV[1])
if parked then
  redis.call('ZADD', KEYS[9], deadline, ARGV[1])
  redis.call('SET', KEYS[10], ARGV[6])
end
return {outcome, now, 0}
