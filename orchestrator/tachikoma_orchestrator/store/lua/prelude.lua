-- Shared functions, placed before every script.
--
-- Each script takes ARGV[1], a JSON object of its named arguments (`args`), and payloads from ARGV[2] on: bytes and
-- large texts, which are not in the object. Lua holds the numbers of JSON as doubles, exact up to 2^53, which covers
-- times in milliseconds. `..` writes only 14 digits of them; `text` writes all.
local args = cjson.decode(ARGV[1])

-- Write a whole number with all its digits.
local function text(number)
  return string.format('%.0f', number)
end

-- Return the current time of Redis, in milliseconds since the epoch. All times of the ledger come from this clock.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Append a name and its value to a list.
local function append(list, name, value)
  list[#list + 1] = name
  list[#list + 1] = value
end

-- Append all values of another list.
local function extend(list, values)
  for _, value in ipairs(values) do
    list[#list + 1] = value
  end
end

-- Return True if a list contains a value.
local function contains(list, wanted)
  for _, value in ipairs(list) do
    if value == wanted then
      return true
    end
  end
  return false
end

-- Change an index as far as it is one. A wrong type, which only tampering causes, must not keep an execution from its
-- final state; the reaper recreates such an index.
local function index(...)
  return redis.pcall(...)
end

-- Number and id of the last event that this script appended; empty for none. Every script returns them beside its
-- result, so that an orchestrator knows the last event that it has seen in Redis.
local written = {}

-- Append events, each a list of names and values, to the audit trail, and return the number of the last one. No other
-- function writes there. The numbers have no gap, so a reader notices a missing event.
local function audit_all(trail, events)
  local before = redis.call('INCRBY', trail .. ':seq', #events) - #events
  for place, event in ipairs(events) do
    local seq = before + place
    written = {seq, redis.call('XADD', trail, '*', 'seq', seq, unpack(event))}
  end
  return written[1]
end

-- Append one event to the audit trail, and return its number.
local function audit(trail, event)
  return audit_all(trail, {event})
end

-- Let the numbers of the audit trail continue after the last number that was seen, if Redis lost that event. Return
-- the number of skipped numbers.
local function continue_after(trail, number)
  local missing = number - (tonumber(redis.call('GET', trail .. ':seq')) or 0)
  if missing <= 0 then
    return 0
  end
  redis.call('INCRBY', trail .. ':seq', text(missing))
  return missing
end

-- Fields of a record that every event about its execution also contains, so that each event can be read alone.
local AUDITED_FIELDS = {'requested_by', 'command', 'client_ip', 'policy', 'batch'}

-- Return an event about an execution, with the values of AUDITED_FIELDS in its record, in that order.
local function execution_event(values, event)
  for place, name in ipairs(AUDITED_FIELDS) do
    if values[place] or name ~= 'batch' then
      append(event, name, values[place] or '')
    end
  end
  return event
end

-- Append an event about an execution, with what its record says now.
local function audit_execution(trail, execution, event)
  audit(trail, execution_event(redis.call('HMGET', execution, unpack(AUDITED_FIELDS)), event))
end

-- Return True if an agent is revoked (`revoke.lua`), by the hash of revocations.
local function revoked(hash, agent)
  local entry = redis.call('HGET', hash, agent)
  return entry and string.find(entry, '^{"active":true') and true or false
end
