-- Change an execution's state by compare-and-set, with its audit event. No other script changes a state.
--
-- The same change can arrive twice: the first answer was lost, or the second script of its transaction was unknown to
-- Redis. A repetition returns DONE again and changes nothing.
--
-- KEYS
--   1  orch:exec:<id>               ledger record (hash)
--   2  orch:audit                   audit trail (stream)
--   3  orch:open                    executions without a final state, by deadline (zset)
--   4  orch:ended                   channel for ids of executions that reached their final state
--   5  agent.<agent>:claim:<id>     claim (string)
--   6  orch:approvals               executions that wait for an approval (zset)
--   7  orch:parked:<id>             the request that waits for an approval (string)
--   8  orch:approved                channel for ids of executions that were approved
--   9  orch:outputs                 ended executions with output, by time (zset)
-- ARGV
--   1  JSON object
--      id             execution id
--      agent          agent id
--      sources        list of states in which the change applies
--      target         new state; empty leaves the state as it is
--      terminal       true if the new state is final
--      fence          value of the claim that keeps the agent from starting the execution, set first; empty for none
--      order_sha256   SHA-256 of the order that the change answers; empty to not compare
--      wait_ms        longest wait from now on; 0 leaves the deadline as it is
--      start_ms       time of the start that the agent reports, in milliseconds since the epoch by its clock; empty for
--                     none. The start is recorded first if the agent's notice was missed
--      change         random id of this change
--      output_bytes   bytes of output that the agent reports; 0 for none
--      keep_seconds   how long a completed record, and the fence, are kept
--      fields         names and values of record fields to set
--      event          names and values of the audit event
--      show           true if the changed record is returned
-- RESULT: {outcome, state, ms, names and values of the changed record if `show`, time of the admission or approval in
--   ms}; outcome is
--   DONE | MISSING (the agent has no such execution) | STATE (it is in another state) | CLAIMED (the agent claimed it
--   before the fence was set) | ORDER (another order)
local execution, trail, open, ended, claim, approvals, parked, approved, outputs = unpack(KEYS)
local id, target, terminal = args.id, args.target, args.terminal
local moves = target ~= ''
local now = clock()

-- Count the final state in the execution's batch. A batch that was tampered with stops no execution from ending.
local function settle_target(batch)
  if batch then
    local evidence = ''
    for place = 1, #args.event, 2 do
      evidence = args.event[place] == 'evidence_sha256' and args.event[place + 1] or evidence
    end
    pcall(end_target, batch, args.agent, target, result_of(execution, id), evidence, now)
  end
end

-- Check.
local change = 'change:' .. target
local record = redis.call(
  'HMGET', execution, 'state', 'agent', change, 'order_sha256', 'history', 'scopes', 'batch', 'admitted_ms',
  unpack(AUDITED_FIELDS)
)
local state, agent, done, order_sha256, history, scopes, batch, admitted_ms = unpack(record, 1, 8)
local audited = {unpack(record, 9, 8 + #AUDITED_FIELDS)}
if not state or agent ~= args.agent then
  -- An agent can report anything, but only about its own executions.
  return {'MISSING', '', now}
end
local function changed()
  return args.show and redis.call('HGETALL', execution) or {}
end
local queued_ms = history and string.match(history, 'QUEUED (%d+)') or admitted_ms or '0'
if done == args.change then
  return {'DONE', state, now, changed(), queued_ms}
end
if not contains(args.sources, state) then
  return {'STATE', state, now}
end
if args.order_sha256 ~= '' and order_sha256 ~= args.order_sha256 then
  return {'ORDER', state, now}
end
if args.fence ~= '' then
  local claimed = redis.call('SET', claim, args.fence, 'NX', 'EX', args.keep_seconds)
  -- A claim of another type counts as claimed: no agent starts by it, but one may have started before.
  if not claimed and redis.pcall('GET', claim) ~= args.fence then
    return {'CLAIMED', state, now}
  end
end

-- Audit. The events are written first: if they cannot be written, nothing is changed.
local events = {}
history = history or state
if state == 'QUEUED' and args.start_ms ~= '' then
  -- The agent's receipt arrived before its notice.
  history = history .. ';STARTED ' .. text(now)
  events[1] = execution_event(audited, {
    'event', 'started', 'id', id, 'agent_id', agent, 'authorized', '1', 'start_ms', args.start_ms,
  })
end
events[#events + 1] = execution_event(audited, {unpack(args.event)})
audit_all(trail, events)

-- Record.
local fields = {change, args.change, unpack(args.fields)}
if moves then
  append(fields, 'state', target)
  append(fields, 'history', history .. ';' .. target .. ' ' .. text(now))
end
if terminal then
  append(fields, 'settled_ms', now)
end
if args.wait_ms > 0 then
  append(fields, 'deadline_ms', now + args.wait_ms)
  index('ZADD', open, now + args.wait_ms, id)
end
redis.call('HSET', execution, unpack(fields))
if moves and state == 'PENDING_APPROVAL' then
  index('ZREM', approvals, id)
  redis.call('DEL', parked)
  if target == 'QUEUED' then
    redis.call('PUBLISH', approved, id)
  end
end
if moves and target ~= 'QUEUED' then
  -- Scopes are released only here; a second release changes nothing. Admission stored their names in the record.
  for scope in string.gmatch(scopes or '', '%S+') do
    index('SREM', 'orch:waiting:' .. scope, id)
    if terminal then
      index('SREM', 'orch:open:' .. scope, id)
    end
  end
end
if terminal then
  index('ZREM', open, id)
  if args.output_bytes > 0 then
    local requester = audited[1] or ''
    index('ZADD', outputs, now, table.concat({text(now), text(args.output_bytes), agent, id, requester}, ' '))
  end
  redis.call('EXPIRE', execution, args.keep_seconds)
  redis.call('PUBLISH', ended, id)
  settle_target(batch)
end
return {'DONE', moves and target or state, now, changed(), queued_ms}
