-- Record the outcome of a run that was about to be requested. If the outcome is that it did not run, it never can: its
-- claim is fenced, so a submitter that still requests it is too late. The id of a batch is taken by a digest that no
-- request has.
--
-- KEYS
--   1  orch:schedule:<name>         progress of the schedule (hash)
--   2  orch:schedule:<name>:runs    its runs (hash)
--   3  orch:exec:<id>               ledger record of the run (hash); of a batch, orch:batch:<id>
--   4  agent.<agent>:claim:<id>     claim (string); of a batch, orch:batch:<id>
--   5  orch:audit                   audit trail (stream)
-- ARGV
--   1  JSON object
--      run           the run's id in the schedule
--      subject       SPIFFE ID of the schedule
--      batch         true if the run is a batch
--      executed      true if there is an execution; false to look for one
--      entry_if_run  JSON that is stored if there is an execution
--      entry_if_not  JSON that is stored if there is none
--      fence         value of the claim that keeps the agent from starting the execution
--      keep_seconds  how long the fence is kept
--      event         names and values of the audit event if there is none; an empty list for no event
-- RESULT: 1 if the run has an execution, 0 if it has none, -1 if its outcome was recorded before
local schedule, runs, execution, claim, trail = unpack(KEYS)
local taken = 'taken:' .. args.run
if redis.call('HEXISTS', schedule, taken) == 0 then
  return -1
end
local executed = args.executed or redis.call('HGET', execution, 'requested_by') == args.subject
if not executed and args.batch then
  if redis.call('HSETNX', execution, 'digest', args.fence) == 1 then
    redis.call('EXPIRE', execution, args.keep_seconds)
  end
elseif not executed and not redis.call('SET', claim, args.fence, 'NX', 'EX', args.keep_seconds) then
  executed = redis.call('GET', claim) ~= args.fence
end
redis.call('HDEL', schedule, taken)
if redis.call('HEXISTS', runs, args.run) == 1 then
  redis.call('HSET', runs, args.run, executed and args.entry_if_run or args.entry_if_not)
end
if not executed and #args.event > 0 then
  audit(trail, args.event)
end
return executed and 1 or 0
