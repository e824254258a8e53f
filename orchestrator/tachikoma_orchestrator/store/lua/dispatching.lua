-- Shared functions about orders, placed after the prelude of the scripts that need them. No other function writes to a
-- queue.

-- Return the event that an order was sent; `order` has sha256 and policy, and `values` are those of AUDITED_FIELDS.
local function dispatched_event(id, agent, order, values)
  local requested_by, command, client_ip, _, batch = unpack(values, 1, #AUDITED_FIELDS)
  return execution_event({requested_by, command, client_ip, order.policy, batch}, {
    'event', 'dispatched', 'id', id, 'agent_id', agent, 'authorized', '1', 'evidence_sha256', order.sha256,
  })
end

-- Return the fields of a record whose order is sent now; `order` has sha256, policy and life.
local function dispatched_fields(order, now)
  return {'policy', order.policy, 'dispatched_ms', now, 'order_sha256', order.sha256, 'life', order.life}
end

-- Put the order of a recorded execution on its agent's queue, once. Return 1, or 0 if the execution does not wait for
-- this order: refused, another request, completed or dispatched.
local function dispatch(execution, queue, trail, id, agent, expected, order, message)
  local record = redis.call('HMGET', execution, 'digest', 'state', 'dispatched_ms', unpack(AUDITED_FIELDS))
  local digest, state, dispatched = unpack(record, 1, 3)
  if digest ~= expected or state ~= 'QUEUED' or dispatched then
    return 0
  end
  -- A queue of another type is an error before anything is written.
  redis.call('LLEN', queue)
  -- The event is written first: if it cannot be written, no order is on the queue.
  audit(trail, dispatched_event(id, agent, order, {unpack(record, 4, 3 + #AUDITED_FIELDS)}))
  redis.call('HSET', execution, unpack(dispatched_fields(order, clock())))
  redis.call('LPUSH', queue, message)
  return 1
end
