-- Count the orders on the queues of agents.
--
-- KEYS
--   none; the names of the queues are made here: agent.<agent> and agent.<agent>:queue:<lane> (lists)
-- ARGV
--   1  JSON object
--      agents  list of agent ids
--      lanes   number of queues of each agent beside its main one
-- RESULT: the number of orders of each agent, in the order of `agents`; -1 if one of its queues is no list
local counts = {}
for place, agent in ipairs(args.agents) do
  local count = redis.pcall('LLEN', 'agent.' .. agent)
  for lane = 0, args.lanes - 1 do
    local more = redis.pcall('LLEN', 'agent.' .. agent .. ':queue:' .. text(lane))
    count = type(count) == 'number' and type(more) == 'number' and count + more
  end
  counts[place] = count or -1
end
return counts
