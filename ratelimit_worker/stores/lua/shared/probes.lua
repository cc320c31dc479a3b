-- Which call is the probe, while a lane's provider is taken to be away? All calls of one task, or of one process, may fail
-- for their own sake, and a thousand of them may stand before all others: so probes go to tasks and processes in turn.
local probes = {MANY = 1e6, LOOKS = 32, KEPT = 16}      -- MANY: a width that bounds nothing
function probes.on(L)                                  -- only probes go out
  return L.width > 0 and L.width < probes.MANY and (L.gap > 0 or L.mode == 'EMERGENCY')
end
function probes.key(lane) return key('probed:') .. lane end
-- Whose a call is: its task's; its process's, which waits on a queue of its own, where that makes its calls itself.
function probes.party(queue, message)
  return string.match(message or '', '"task": "([^"]*)"') or string.match(queue, '^inproc:.*$') or ''
end
-- The number of the lane's call that was the last probe of this call's party; 0: it had none.
function probes.last(L, ref, queue)
  return tonumber(redis.call('HGET', probes.key(L.name), probes.party(queue, redis.call('HGET', call_key(ref), 'm'))) or '0')
end
-- The next probe and its queue: the first call (ref), unless its party had a probe later than that of another of some calls
-- on the queues that have room: others each time, evenly spaced, and the last that was not tried. O(looks · log waiting).
function probes.choose(S, ref, queue)
  local L = S.L
  local at = probes.last(L, ref, queue)
  if at == 0 then return ref, queue end
  for _, q in ipairs(S.queues) do
    local k = wait_key(L.name, q)
    local n = S.room[q] ~= 'empty' and (S.room[q] or 0) > 0 and redis.call('ZCARD', k) or 0
    local looks = math.min(n, probes.LOOKS)
    for i = 0, n > 0 and looks or -1 do
      local rank = math.floor((i + (L.seq * 0.6180339887) % 1) * n / looks)
      if i == looks then rank = redis.call('ZCOUNT', k, '-inf', '(' .. int(BEHIND)) - 1 end
      local one = redis.call('ZRANGE', k, rank, rank)[1]
      local then_at = one and probes.last(L, one, q) or at
      if then_at < at then ref, queue, at = one, q, then_at end
    end
  end
  return ref, queue
end
-- A call of this party went out as a probe; the last few are remembered.
function probes.went(L, queue, message)
  local k, party = probes.key(L.name), probes.party(queue, message)
  if party == '' then return end
  redis.call('HSET', k, party, int(L.seq))
  redis.call('EXPIRE', k, TTL_S.TENANT)
  if redis.call('HLEN', k) <= probes.KEPT then return end
  local all, oldest, least = redis.call('HGETALL', k), nil, nil
  for i = 1, #all, 2 do
    if not least or tonumber(all[i + 1]) < least then oldest, least = all[i], tonumber(all[i + 1]) end
  end
  redis.call('HDEL', k, oldest)
end
