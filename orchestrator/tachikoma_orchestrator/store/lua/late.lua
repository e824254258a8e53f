-- Audit a receipt that arrived after its execution had been given up; once for each receipt, however many
-- orchestrators receive it.
--
-- KEYS
--   1  orch:exec:<id>        ledger record (hash)
--   2  orch:audit            audit trail (stream)
-- ARGV
--   1  JSON object
--      receipt_sha256  SHA-256 of the receipt
--      event           names and values of the audit event
-- RESULT: 1, or 0 if it was audited before, or there is no such execution
local execution, trail = unpack(KEYS)
local state, audited = unpack(redis.call('HMGET', execution, 'state', 'late_receipt'))
if not state or audited == args.receipt_sha256 then
  return 0
end
audit(trail, args.event)
redis.call('HSET', execution, 'late_receipt', args.receipt_sha256)
return 1
