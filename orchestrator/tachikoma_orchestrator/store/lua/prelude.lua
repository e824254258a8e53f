-- Stands before every script.

-- Append an event, given as a list of names and values, to the audit trail; the only way anything gets there. Numbers
-- follow each other without a hole, so that a reader sees when one is missing.
local function audit(trail, event)
  local seq = redis.call('INCR', trail .. ':seq')
  redis.call('XADD', trail, '*', 'seq', seq, unpack(event))
  return seq
end

-- Each event can be read alone: it also says whose execution it is, and why that was let through.
local function audit_execution(trail, execution, event)
  for _, name in ipairs({'requested_by', 'command', 'client_ip', 'policy'}) do
    event[#event + 1] = name
    event[#event + 1] = redis.call('HGET', execution, name) or ''
  end
  return audit(trail, event)
end

-- Whether an agent is cut off (`revoke.lua`), by the hash of those.
local function revoked(hash, agent)
  local entry = redis.call('HGET', hash, agent)
  return entry and string.find(entry, '^{"in_force":true') and true or false
end
