-- Record runs of a schedule and its new progress, unless another submitter did so first.
--
-- KEYS
--   1  orch:schedule:<name>         progress of the schedule (hash)
--   2  orch:schedule:<name>:runs    its runs (hash)
--   3  orch:schedule:<name>:order   ids of its runs by time (zset)
--   4  orch:schedules               every schedule that ever ran (hash)
--   5  orch:audit                   audit trail (stream)
-- ARGV
--   1  JSON object
--      name       name of the schedule
--      version    version of the progress that the caller read, as text; '0' if there was none
--      cursor_ms  time up to which all runs are recorded now, ms
--      rule       the rule of its times from then on; empty for none
--      max_runs   most runs that are kept
--      last_exec  id of the execution that is about to be requested; empty for none
--      runs       list of {id, due_ms, taken (true if it is about to be requested), entry (JSON that is stored),
--                 event (names and values of its audit event; an empty list for no event)}
-- RESULT: 1, or 0 if another submitter was first
local schedule, runs, order, schedules, trail = unpack(KEYS)
local version = redis.call('HGET', schedule, 'version') or '0'
if version ~= args.version then
  return 0
end
redis.call('HSET', schedules, args.name, 1)
redis.call('HSET', schedule, 'version', text(version + 1), 'cursor_ms', text(args.cursor_ms), 'rule', args.rule)
if args.last_exec ~= '' then
  redis.call('HSET', schedule, 'last_exec', args.last_exec)
end
for _, run in ipairs(args.runs) do
  redis.call('HSET', runs, run.id, run.entry)
  redis.call('ZADD', order, text(run.due_ms), run.id)
  if run.taken then
    redis.call('HSET', schedule, 'taken:' .. run.id, run.entry)
  end
  if #run.event > 0 then
    audit(trail, run.event)
  end
end
local excess = redis.call('ZCARD', order) - args.max_runs
if excess > 0 then
  for _, id in ipairs(redis.call('ZRANGE', order, 0, excess - 1)) do
    redis.call('HDEL', runs, id)
    redis.call('ZREM', order, id)
  end
end
return 1
