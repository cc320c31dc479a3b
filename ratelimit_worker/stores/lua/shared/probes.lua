-- Which call is the probe, while a lane's provider is taken to be away? All calls of one task, or of one process, may fail
-- for their own sake, and a thousand of them may stand before all others: so probes go to tasks and processes in turn.
local probes = {MANY = 1e6, LOOKS = 32, KEPT = 16}      -- MANY: a width that bounds nothing
function probes.on(L)                                  -- only probes go out
  return L.width > 0 and L.width < probes.MANY and (L.gap > 0 or L.mode == 'EMERGENCY')
end
-- A call's task, and the queue on which it waits: its process's own, where that makes its calls itself.
function probes.party(queue, message)
  return queue .. '\n' .. (string.match(message or '', '"task": "([^"]*)"') or '')
end
function probes.last(L)                                -- party -> number of the lane's call that was its last probe
  local packed = redis.call('HGET', lane_key(L.name), 'probed')
  return packed and cmsgpack.unpack(packed) or {}
end
-- The next probe and its queue: the first call (ref), unless its party had a probe later than that of another of some calls
-- on the queues that have room: others each time, evenly spaced, and the last that was not tried. O(looks · log waiting).
function probes.choose(L, queues, rooms, ref, queue)
  local last = probes.last(L)
  local function probed(one, on) return last[probes.party(on, redis.call('HGET', call_key(one), 'm'))] or 0 end
  local at = probed(ref, queue)
  if at == 0 then return ref, queue end
  for _, q in ipairs(queues) do
    local k = wait_key(L.name, q)
    local n = rooms[q] ~= 'empty' and (rooms[q] or 0) > 0 and redis.call('ZCARD', k) or 0
    local looks = math.min(n, probes.LOOKS)
    for i = 0, looks do
      local rank = math.floor((i + (L.seq * 0.6180339887) % 1) * n / looks)
      if i == looks then rank = redis.call('ZCOUNT', k, '-inf', '(' .. int(BEHIND)) - 1 end
      local one = redis.call('ZRANGE', k, rank, rank)[1]
      local then_at = one and probed(one, q) or at
      if then_at < at then ref, queue, at = one, q, then_at end
    end
  end
  return ref, queue
end
function probes.went(L, queue, message)                -- L.seq: its number
  local last, n, oldest = probes.last(L), 0, nil
  last[probes.party(queue, message)] = L.seq
  for party, at in pairs(last) do
    n = n + 1
    if not oldest or at < last[oldest] then oldest = party end
  end
  if n > probes.KEPT then last[oldest] = nil end
  redis.call('HSET', lane_key(L.name), 'probed', cmsgpack.pack(last))
end
