-- Admit a request: check, record, audit and put it on the agent's queue, together or not at all.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  agent.<agent>:info    the agent's lease; it is offline where this is missing
--   3  agent.<agent>         the agent's queue (list; BRPOP takes from the right end)
--   4  orch:audit            audit trail (stream)
--   5  orch:agents           agents ever heard of (hash)
--   6  orch:index            executions by time (zset)
--   7  orch:index:<agent>    executions of the agent by time (zset)
--   8  orch:open             executions not ended, by queue deadline (zset)
--   then for each scope that has limits
--      orch:rate:<scope>     executions by time of acceptance, for a minute (zset)
--      orch:open:<scope>     executions not ended (set)
--      orch:waiting:<scope>  executions not started (set)
-- ARGV
--   1  execution id
--   2  agent id
--   3  digest of the request
--   4  most orders that may wait on the queue
--   5  queue timeout, ms
--   6  Celery message
--   7  number of scopes; then for each its name, most accepted in any minute, most not ended, most not started; 0: any
--   then number of record fields, and so many names and values
--   then names and values of the audit event, without its code
-- RESULT: {outcome, ms, ms after which a repetition may succeed or 0}; outcome is
--   ADMITTED | DUPLICATE (same id, same request) | CONFLICT (same id, another request)
--   | UNKNOWN (agent never heard of) | OFFLINE | FULL (queue) | RATE | CONCURRENT | WAITING (of a scope)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local known = redis.call('HGET', KEYS[1], 'digest')
if known == ARGV[3] then
  return {'DUPLICATE', now, 0}
end

local outcome = 'ADMITTED'
if known then
  outcome = 'CONFLICT'
elseif redis.call('EXISTS', KEYS[2]) == 0 then
  outcome = redis.call('HEXISTS', KEYS[5], ARGV[2]) == 1 and 'OFFLINE' or 'UNKNOWN'
elseif redis.call('LLEN', KEYS[3]) >= tonumber(ARGV[4]) then
  outcome = 'FULL'
end

local minute = 60000
local retry = 0
local scopes = tonumber(ARGV[7])
local function limit(scope, which)
  return tonumber(ARGV[8 + 4 * scope + which])
end
for scope = 0, scopes - 1 do
  local rate, open, waiting = KEYS[9 + 3 * scope], KEYS[10 + 3 * scope], KEYS[11 + 3 * scope]
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

local fields = 8 + 4 * scopes
local last = fields + 2 * tonumber(ARGV[fields])
local event = {'event', outcome == 'ADMITTED' and 'admitted' or 'refused'}
for i = last + 1, #ARGV do
  event[#event + 1] = ARGV[i]
end
if outcome ~= 'ADMITTED' then
  event[#event + 1] = 'reason'
  event[#event + 1] = outcome
end
redis.call('XADD', KEYS[4], '*', unpack(event))
if outcome ~= 'ADMITTED' then
  return {outcome, now, retry}
end

local deadline = now + tonumber(ARGV[5])
local record = {
  'digest', ARGV[3], 'state', 'QUEUED', 'agent', ARGV[2],
  'admitted_ms', now, 'deadline_ms', deadline, 'history', 'QUEUED ' .. now,
}
for i = fields + 1, last do
  record[#record + 1] = ARGV[i]
end
local names = {}
for scope = 0, scopes - 1 do
  names[#names + 1] = ARGV[8 + 4 * scope]
  redis.call('ZADD', KEYS[9 + 3 * scope], now, ARGV[1])
  redis.call('PEXPIRE', KEYS[9 + 3 * scope], minute)
  redis.call('SADD', KEYS[10 + 3 * scope], ARGV[1])
  redis.call('SADD', KEYS[11 + 3 * scope], ARGV[1])
end
if scopes > 0 then
  record[#record + 1] = 'scopes'
  record[#record + 1] = table.concat(names, ' ')
end
redis.call('HSET', KEYS[1], unpack(record))
redis.call('ZADD', KEYS[6], now, ARGV[1])
redis.call('ZADD', KEYS[7], now, ARGV[1])
redis.call('ZADD', KEYS[8], deadline, ARGV[1])
redis.call('LPUSH', KEYS[3], ARGV[6])
return {outcome, now, 0}
