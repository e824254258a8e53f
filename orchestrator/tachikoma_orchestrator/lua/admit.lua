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
-- ARGV
--   1  execution id
--   2  agent id
--   3  digest of the request
--   4  most orders that may wait on the queue
--   5  queue timeout, ms
--   6  Celery message
--   7  number of record fields; then so many names and values
--   then names and values of the audit event, without its code
-- RESULT: {outcome, ms}; outcome is
--   ADMITTED | DUPLICATE (same id, same request) | CONFLICT (same id, another request)
--   | UNKNOWN (agent never heard of) | OFFLINE | FULL (queue)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local known = redis.call('HGET', KEYS[1], 'digest')
if known == ARGV[3] then
  return {'DUPLICATE', now}
end

local outcome = 'ADMITTED'
if known then
  outcome = 'CONFLICT'
elseif redis.call('EXISTS', KEYS[2]) == 0 then
  outcome = redis.call('HEXISTS', KEYS[5], ARGV[2]) == 1 and 'OFFLINE' or 'UNKNOWN'
elseif redis.call('LLEN', KEYS[3]) >= tonumber(ARGV[4]) then
  outcome = 'FULL'
end

local last = 7 + 2 * tonumber(ARGV[7])
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
  return {outcome, now}
end

local deadline = now + tonumber(ARGV[5])
local record = {
  'digest', ARGV[3], 'state', 'QUEUED', 'agent', ARGV[2],
  'admitted_ms', now, 'deadline_ms', deadline, 'history', 'QUEUED ' .. now,
}
for i = 8, last do
  record[#record + 1] = ARGV[i]
end
redis.call('HSET', KEYS[1], unpack(record))
redis.call('ZADD', KEYS[6], now, ARGV[1])
redis.call('ZADD', KEYS[7], now, ARGV[1])
redis.call('ZADD', KEYS[8], deadline, ARGV[1])
redis.call('LPUSH', KEYS[3], ARGV[6])
return {outcome, now}
