-- Shared functions about batches, placed after the prelude of the scripts that need them.
--
-- The names are also made in `tachikoma.redis.keys: batch`. A batch `<id>` has
--   orch:batch:<id>          its state, limits and counts (hash)
--   orch:batch:<id>:pending  agents that wait for their turn, by their place in the list of targets (zset)
--   orch:batch:<id>:running  agents whose execution has not ended (set)
--   orch:batch:<id>:ended    agents that have ended, with their result as JSON (hash)
-- and is in `orch:batches:open` until nothing of it runs. Fields of the hash:
--   state PENDING_APPROVAL | RUNNING | DONE | STOPPED | CANCELLED | EXPIRED | REJECTED; parallel;
--   released (targets before this place may start); stop_after (0 for never); failures; keep_seconds;
--   counted (states that count as failures, each between spaces); n:<state> (targets that ended in it); reason;
--   ended_ms; deadline_ms; approval (signed); failed (executions of the first failures, or their agents without one)
local BATCHES_OPEN, BATCHES_CHANGED, BATCH_TRAIL = 'orch:batches:open', 'orch:batches:changed', 'orch:audit'
-- Most failures that the event of a stop names.
local MOST_NAMED = 10

-- Return the keys of a batch: hash, pending, running, ended.
local function batch_keys(id)
  local key = 'orch:batch:' .. id
  return key, key .. ':pending', key .. ':running', key .. ':ended'
end

-- Append an event about a batch; it contains the requester and the command.
local function audit_batch(id, code, reason, evidence, actor)
  local fields = redis.call('HMGET', 'orch:batch:' .. id, 'requested_by', 'command')
  audit(BATCH_TRAIL, {
    'event', code, 'batch', id, 'authorized', '1', 'requested_by', fields[1] or '', 'command', fields[2] or '',
    'reason', reason, 'evidence_sha256', evidence, 'actor', actor,
  })
end

-- End a batch of which nothing runs, and which starts nothing more.
local function finish_batch(id, now)
  local key, pending, running, ended = batch_keys(id)
  local state, keep = unpack(redis.call('HMGET', key, 'state', 'keep_seconds'))
  if redis.call('SCARD', running) > 0 or (state == 'RUNNING' and redis.call('ZCARD', pending) > 0) then
    return
  end
  if redis.call('HSETNX', key, 'ended_ms', text(now)) == 0 then
    return
  end
  if state == 'RUNNING' then
    state = 'DONE'
    redis.call('HSET', key, 'state', state)
  end
  redis.call('SREM', BATCHES_OPEN, id)
  audit_batch(id, 'batch_ended', state, '', '')
  for _, name in ipairs({key, pending, running, ended}) do
    redis.call('EXPIRE', name, keep)
  end
end

-- Let no further target of a batch start. Return True if the batch was running, or waited for its approval.
local function halt_batch(id, state, code, reason, evidence, actor, now)
  local key, pending = batch_keys(id)
  if not contains({'RUNNING', 'PENDING_APPROVAL'}, redis.call('HGET', key, 'state')) then
    return false
  end
  redis.call('HSET', key, 'state', state, 'reason', reason, 'n:NOT_STARTED', redis.call('ZCARD', pending))
  audit_batch(id, code, reason, evidence, actor)
  finish_batch(id, now)
  redis.call('PUBLISH', BATCHES_CHANGED, id)
  return true
end

-- Return True if a target of a batch may start now: it waits, its wave is released, and there is room.
local function may_start(id, agent)
  local key, pending, running = batch_keys(id)
  local state, parallel, released = unpack(redis.call('HMGET', key, 'state', 'parallel', 'released'))
  local place = redis.call('ZSCORE', pending, agent)
  return state == 'RUNNING' and place and tonumber(place) < tonumber(released)
    and redis.call('SCARD', running) < tonumber(parallel)
end

-- Count a target of a batch as running.
local function start_target(id, agent)
  local _, pending, running = batch_keys(id)
  redis.call('ZREM', pending, agent)
  redis.call('SADD', running, agent)
end

-- Count a target as running that still waits: its order was sent in a part of the past that Redis lost. A wrong type
-- must not keep the execution from its record.
local function start_waiting_target(id, agent)
  local _, pending = batch_keys(id)
  if type(redis.pcall('ZSCORE', pending, agent)) == 'string' then
    start_target(id, agent)
  end
end

-- Record the end of a target, and stop the batch if its rule is reached. `result` is the target's entry, a table.
local function end_target(id, agent, state, result, evidence, now)
  local key, pending, running, ended = batch_keys(id)
  local counted, stop_after = unpack(redis.call('HMGET', key, 'counted', 'stop_after'))
  if not counted then
    return
  end
  local waited, ran = redis.call('ZREM', pending, agent), redis.call('SREM', running, agent)
  if waited + ran == 0 then
    return
  end
  result.state = state
  result.receipt = evidence ~= '' and evidence or nil
  redis.call('HSET', ended, agent, cjson.encode(result))
  redis.call('HINCRBY', key, 'n:' .. state, 1)
  if string.find(counted, ' ' .. state .. ' ', 1, true) then
    local failures, limit = redis.call('HINCRBY', key, 'failures', 1), tonumber(stop_after)
    local failed = redis.call('HGET', key, 'failed')
    if failures <= MOST_NAMED then
      failed = (failed and failed .. ', ' or '') .. (result.id or agent)
      redis.call('HSET', key, 'failed', failed)
    end
    if limit > 0 and failures >= limit then
      local reason = text(failures) .. ' targets failed, and stopAfter is ' .. text(limit) .. '; the last was ' .. agent
        .. '; failed: ' .. (failed or '') .. (failures > MOST_NAMED and ', …' or '')
      halt_batch(id, 'STOPPED', 'batch_stopped', reason, evidence, '', now)
    end
  end
  finish_batch(id, now)
  redis.call('PUBLISH', BATCHES_CHANGED, id)
end

-- Return the result of an execution that has ended, as the entry of its target.
local function result_of(execution, id)
  local names = {'exit_code', 'error', 'stdout_sha256', 'stderr_sha256', 'stdout_bytes', 'stderr_bytes'}
  local result = {id = id}
  for place, value in ipairs(redis.call('HMGET', execution, unpack(names))) do
    result[names[place]] = value or nil
  end
  return result
end

-- Let a target that waits follow its execution: Redis lost the batch, and the record was restored before the batch.
local function follow_execution(batch, agent, execution, id, now)
  local state, settled = unpack(redis.call('HMGET', execution, 'state', 'settled_ms'))
  if settled then
    end_target(batch, agent, state, result_of(execution, id), '', now)
  else
    start_waiting_target(batch, agent)
  end
end
