-- Put on the record that an agent reported the end of what had been given up: once for each receipt, however many
-- orchestrators hear of it.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  orch:audit            audit trail (stream)
-- ARGV
--   1  SHA-256 of the receipt
--   then names and values of the audit event
-- RESULT: 1, or 0 where it is on the record already, or the execution is not
local known = redis.call('HMGET', KEYS[1], 'state', 'late_receipt')
if not known[1] or known[2] == ARGV[1] then
  return 0
end
local event = {}
for i = 2, #ARGV do
  event[#event + 1] = ARGV[i]
end
audit(KEYS[2], event)
redis.call('HSET', KEYS[1], 'late_receipt', ARGV[1])
return 1
