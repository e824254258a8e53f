-- Use up an enrolment: of all who come with its token, one joins. Whoever was cut off before is not any more.
--
-- KEYS
--   1  orch:enrolment:<agent>  enrolment that waits for its token (string)
--   2  orch:joined             agents that joined with a token (hash)
--   3  orch:revoked            agents that were cut off (hash)
--   4  orch:audit              audit trail (stream)
-- ARGV
--   1  agent id
--   2  the signed enrolment that was verified
--   3  what is kept of it, JSON
--   4  who made the enrolment
--   5  address that it was used from
--   6  what the event says of it
--   7  SHA-256 of the certificate
-- RESULT: 1, or 0 where it was used, replaced or revoked meanwhile
if redis.call('GET', KEYS[1]) ~= ARGV[2] then
  -- Of a call that is repeated because its answer was lost, what is kept is the same.
  return redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[3] and 1 or 0
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
local entry = redis.call('HGET', KEYS[3], ARGV[1])
if entry then
  -- It stays known since when: what was issued before that never counts again.
  entry = string.gsub(entry, '^{"in_force":true', '{"in_force":false', 1)
  redis.call('HSET', KEYS[3], ARGV[1], entry)
end
audit(KEYS[4], {
  'event', 'join_accepted', 'agent_id', ARGV[1], 'authorized', '1', 'actor', ARGV[4], 'client_ip', ARGV[5],
  'reason', ARGV[6], 'evidence_sha256', ARGV[7],
})
return 1
