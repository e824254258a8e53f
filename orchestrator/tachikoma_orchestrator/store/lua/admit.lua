-- Admit a request: check, record and audit it in one step, and put its order on the queue. Without an order, the
-- execution waits for one (`dispatch.lua`), or for an approval (`transition.lua`).
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  agent.<agent>:info    the agent's lease; without it the agent is offline
--   3  agent.<agent>         the agent's queue (list)
--   4  orch:audit            audit trail (stream)
--   5  orch:agents           agents that ever joined (hash)
--   6  orch:index            executions by time (zset)
--   7  orch:index:<agent>    executions of the agent by time (zset)
--   8  orch:open             executions without a final state, by deadline (zset)
--   9  orch:approvals        executions that wait for an approval, by deadline (zset)
--  10  orch:parked:<id>      the request that waits for an approval (string)
--  11  orch:draining         agents that take no new executions (hash)
--  12  orch:revoked          revocations of agents (hash)
--   then for each scope, in the order of `scopes`
--      orch:rate:<scope>     executions by time of acceptance, for a minute (zset)
--      orch:open:<scope>     executions without a final state (set)
--      orch:waiting:<scope>  executions not started (set)
-- ARGV
--   1  JSON object
--      id              execution id
--      agent           agent id
--      digest          digest of the request
--      queue_size      most orders on the agent's queue
--      approvals_size  most executions that wait for an approval
--      wait_ms         longest wait on the queue or for the approval
--      record_refusal  true if a refusal is recorded by an event; else the orchestrator counts it
--      unfit           why the agent can run nothing, in words (clock, formats); empty if it can
--      batch           id of the batch that the request is a part of; empty for none
--      scopes          list of {name, per_minute, concurrent, waiting}: limits, each 0 for none
--      record          names and values of further record fields
--      event           names and values of the audit event, without its code and the request
--      shorter_event   the same for a refusal if the request is large, with the shortened request; else empty
--      order           {sha256, policy, life} of its order, as in `dispatch.lua`; empty without an order
--   2  the signed request if it needs an approval; else empty
--   3  the redacted request for the record, as JSON
--   4  the redacted request for the audit event, as JSON
--   5  Celery message of the order; empty without an order
--      (these four are large texts, stored as they are)
-- RESULT: {outcome, ms, ms after which a repetition may succeed or 0}; outcome is
--   ADMITTED | DUPLICATE (same id, same request) | CONFLICT (same id, another request)
--   | UNKNOWN (the agent never joined) | OFFLINE | DRAINING | REVOKED | UNFIT | FULL (queue)
--   | APPROVALS (too many wait for one) | RATE | CONCURRENT | WAITING (limits of a scope)
--   | HELD (its batch does not let it start now)
local MINUTE_MS = 60000
local FIXED_KEYS = 12

local execution, lease, queue, trail, agents, index_key, agent_index, open, approvals, parked, draining, revocations =
  unpack(KEYS, 1, FIXED_KEYS)
local signed, recorded_request, audited_request, message = unpack(ARGV, 2, 5)
local id, agent = args.id, args.agent
local needs_approval = signed ~= ''
local has_order = message ~= ''
local now = clock()

for number, scope in ipairs(args.scopes) do
  local first = FIXED_KEYS + 3 * (number - 1)
  scope.rate_key, scope.open_key, scope.waiting_key = KEYS[first + 1], KEYS[first + 2], KEYS[first + 3]
end

-- Return why the agent cannot take the request, or nil.
local function refusal()
  if revoked(revocations, agent) then
    return 'REVOKED'
  elseif redis.call('EXISTS', lease) == 0 then
    return redis.call('HEXISTS', agents, agent) == 1 and 'OFFLINE' or 'UNKNOWN'
  elseif redis.call('HEXISTS', draining, agent) == 1 then
    return 'DRAINING'
  elseif args.unfit ~= '' then
    return 'UNFIT'
  elseif redis.call('LLEN', queue) >= args.queue_size then
    return 'FULL'
  elseif needs_approval and redis.call('ZCARD', approvals) >= args.approvals_size then
    return 'APPROVALS'
  end
end

-- Return which limit of a scope is reached, or nil, and after a rate the ms until a repetition may succeed.
local function limited(scope)
  if scope.per_minute > 0 then
    redis.call('ZREMRANGEBYSCORE', scope.rate_key, '-inf', now - MINUTE_MS)
    local accepted = redis.call('ZCARD', scope.rate_key)
    if accepted >= scope.per_minute then
      -- Enough of the accepted ones must be a minute old, also if the limit was lowered meanwhile.
      local at = accepted - scope.per_minute
      return 'RATE', redis.call('ZRANGE', scope.rate_key, at, at, 'WITHSCORES')[2] + MINUTE_MS - now + 1
    end
  end
  if scope.concurrent > 0 and redis.call('SCARD', scope.open_key) >= scope.concurrent then
    return 'CONCURRENT', 0
  end
  if scope.waiting > 0 and redis.call('SCARD', scope.waiting_key) >= scope.waiting then
    return 'WAITING', 0
  end
end

-- Every index must be one before anything is written: an error in the middle would leave half an execution.
for _, key in ipairs({index_key, agent_index, open, needs_approval and approvals or nil}) do
  redis.call('ZCARD', key)
end
for _, scope in ipairs(args.scopes) do
  redis.call('ZCARD', scope.rate_key)
  redis.call('SCARD', scope.open_key)
  redis.call('SCARD', scope.waiting_key)
end

-- Decide.
local known = redis.call('HGET', execution, 'digest')
if known == args.digest then
  if has_order then
    -- An earlier attempt may have ended before its order was sent.
    dispatch(execution, queue, trail, id, agent, args.digest, args.order, message)
  end
  if args.batch ~= '' then
    follow_execution(args.batch, agent, execution, id, now)
  end
  return {'DUPLICATE', now, 0}
end
if args.batch ~= '' and not may_start(args.batch, agent) then
  return {'HELD', now, 0}
end
local outcome, retry = known and 'CONFLICT' or refusal(), 0
for _, scope in ipairs(args.scopes) do
  if not outcome then
    outcome, retry = limited(scope)
  end
end

-- Audit.
local code, refused = needs_approval and 'approval_requested' or 'admitted', false
local event = args.event
if outcome then
  refused = contains({'CONFLICT', 'UNKNOWN', 'OFFLINE', 'DRAINING', 'REVOKED', 'UNFIT'}, outcome)
  code = refused and 'refused' or 'limited'
  event = #args.shorter_event > 0 and args.shorter_event or event
  append(event, 'reason', outcome == 'UNFIT' and 'UNFIT: ' .. args.unfit or outcome)
end
if event ~= args.shorter_event then
  append(event, 'request', audited_request)
end
local events = {{'event', code, unpack(event)}}
if has_order and not outcome then
  local values = {}
  for place, name in ipairs(AUDITED_FIELDS) do
    values[place] = name == 'batch' and args.batch ~= '' and args.batch or nil
    for at = 1, #args.record, 2 do
      values[place] = args.record[at] == name and args.record[at + 1] or values[place]
    end
  end
  events[2] = dispatched_event(id, agent, args.order, values)
end
if args.record_refusal or not outcome then
  audit_all(trail, events)
end
if outcome then
  if refused and args.batch ~= '' then
    local reason = outcome == 'UNFIT' and args.unfit or outcome
    end_target(args.batch, agent, 'UNREACHABLE', {error = reason}, '', now)
  end
  return {outcome, now, retry}
end

-- Record.
local deadline = now + args.wait_ms
local state = needs_approval and 'PENDING_APPROVAL' or 'QUEUED'
local record = {
  'digest', args.digest, 'state', state, 'agent', agent, 'admitted_ms', now, 'deadline_ms', deadline,
  'history', state .. ' ' .. text(now), 'request', recorded_request,
}
local names = {}
for _, scope in ipairs(args.scopes) do
  names[#names + 1] = scope.name
  redis.call('ZADD', scope.rate_key, now, id)
  redis.call('PEXPIRE', scope.rate_key, MINUTE_MS)
  redis.call('SADD', scope.open_key, id)
  redis.call('SADD', scope.waiting_key, id)
end
if #names > 0 then
  append(record, 'scopes', table.concat(names, ' '))
end
extend(record, args.record)
if args.batch ~= '' then
  append(record, 'batch', args.batch)
  start_target(args.batch, agent)
end
if has_order then
  extend(record, dispatched_fields(args.order, now))
end
redis.call('HSET', execution, unpack(record))
redis.call('ZADD', index_key, now, id)
redis.call('ZADD', agent_index, now, id)
redis.call('ZADD', open, deadline, id)
if needs_approval then
  redis.call('ZADD', approvals, deadline, id)
  redis.call('SET', parked, signed)
end
if has_order then
  redis.call('LPUSH', queue, message)
end
return {'ADMITTED', now, 0}
