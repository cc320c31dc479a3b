-- Which call is the next probe, while a lane's provider seems to be away? The calls of one task, or of one process, may all
-- fail by their own fault, and a thousand of them may be before all others. So tasks and processes (parties) take turns.
local probes = {LOOKS = 32, KEPT = 16}
function probes.on(L)                                  -- only probes go out
  return L.at_once > 0 and L.at_once < KNOWN.MANY and (L.gap > 0 or L.mode == 'EMERGENCY')
end
function probes.key(lane) return key('probed:') .. lane end
-- The party of a call: its task; for an in-process call, its process, which has a queue of its own.
function probes.party(queue, message)
  return string.match(message or '', '"task": "([^"]*)"') or string.match(queue, '^inproc:.*$') or ''
end
-- When this call's party had its last probe, as a number among the lane's calls; 0: it had none.
function probes.last(L, ref, queue)
  return tonumber(redis.call('HGET', probes.key(L.name), probes.party(queue, redis.call('HGET', call_key(ref), 'm'))) or '0')
end
-- The next probe and its queue. It is the first call (ref) if its party had no probe yet. Else a sample of waiting calls is
-- looked at (evenly spaced, different ones each time, and the last that was not tried before), and the one whose party has
-- waited longest for a probe is taken. O(looks · log waiting).
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
-- Notes that a call of this party was sent as a probe; the last KEPT parties are remembered.
function probes.went(L, queue, message)
  local k, party = probes.key(L.name), probes.party(queue, message)
  if party == '' then return end
  redis.call('HSET', k, party, whole(L.seq))
  redis.call('EXPIRE', k, TTL_S.TENANT)
  if redis.call('HLEN', k) <= probes.KEPT then return end
  local all, oldest, least = redis.call('HGETALL', k), nil, nil
  for i = 1, #all, 2 do
    if not least or tonumber(all[i + 1]) < least then oldest, least = all[i], tonumber(all[i + 1]) end
  end
  redis.call('HDEL', k, oldest)
end
