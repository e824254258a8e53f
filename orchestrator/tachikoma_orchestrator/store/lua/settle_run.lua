-- Put on the record what became of a run that was about to be asked for. Where it is said not to have run, it never can
-- from here on: whoever is still about to ask for it comes too late.
--
-- KEYS
--   1  orch:schedule:<name>         how far it is (hash)
--   2  orch:schedule:<name>:runs    what became of its due times (hash)
--   3  orch:exec:<id>               ledger record of the run (hash)
--   4  agent.<agent>:claim:<id>     claim (string)
--   5  orch:audit                   audit trail (stream)
-- ARGV
--   1  the run's id in the schedule
--   2  SPIFFE ID of the schedule
--   3  '1' where there is an execution; else that is looked for
--   4  what is kept of it where there is (JSON)
--   5  what is kept of it where there is none
--   6  fence: the claim's value, so that the agent can never start it
--   7  seconds to keep the fence
--   then words of the audit event where there is none; none for no event
-- RESULT: 1 where it runs, 0 where it does not, -1 where that was settled before
local taken = 'taken:' .. ARGV[1]
if redis.call('HEXISTS', KEYS[1], taken) == 0 then
  return -1
end
local runs = ARGV[3] == '1' or redis.call('HGET', KEYS[3], 'requested_by') == ARGV[2]
if not runs and not redis.call('SET', KEYS[4], ARGV[6], 'NX', 'EX', ARGV[7]) then
  runs = redis.call('GET', KEYS[4]) ~= ARGV[6]
end
redis.call('HDEL', KEYS[1], taken)
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[2], ARGV[1], runs and ARGV[4] or ARGV[5])
end
if not runs and #ARGV > 7 then
  local event = {}
  for i = 8, #ARGV do
    event[#event + 1] = ARGV[i]
  end
  audit(KEYS[5], event)
end
return runs and 1 or 0
