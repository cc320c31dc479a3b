-- The retry budget. A retry whose backoff is over waits behind all other calls, so it gets permits that nobody else wants. If
-- others wait, it goes before them only while the budget allows it: retries get a tenth of the permits plus ten a minute, and at
-- most ten in a burst. They get none after a sick answer until another call was answered, nor while only probes go out: calls
-- that were not tried before say more about the provider. The lane stores what was left of the budget, with the time and the
-- permits given then.
local budget = {MOST = 10}
function budget.left(L)
  local h = redis.call('HMGET', lane_key(L.name), FIELD.RETRIES_LEFT, FIELD.RETRIES_SEQ, FIELD.RETRIES_AT, FIELD.SICK_ROW)
  if (tonumber(h[4] or '0') or 0) > 0 then return 0 end
  if not h[1] then return budget.MOST end
  local permits, us = math.max(0, L.seq - tonumber(h[2])), math.max(0, now - tonumber(h[3]))
  return math.min(budget.MOST, tonumber(h[1]) + KNOWN.RETRY_SHARE * permits + KNOWN.RETRIES_PER_US * us)
end
function budget.pay(L, left)
  redis.call('HSET', lane_key(L.name), FIELD.RETRIES_LEFT, left - 1, FIELD.RETRIES_SEQ, whole(L.seq), FIELD.RETRIES_AT, whole(now))
end
-- The first retry on queues with room, if the budget lets it go before the others -> it, its queue, and the budget. Nothing is
-- looked up for a lane without waiting retries.
function budget.first(L, queues, rooms)
  if probes.on(L) then return nil end
  local left, ref, queue, first
  for _, q in ipairs(queues) do
    if rooms[q] ~= 'empty' and (rooms[q] or 0) > 0 and L.lowest[q] >= RETRIES then
      left = left or budget.left(L)
      if left < 1 then return nil end
      local head, tag = head_of(L, q, true)
      if head and (not first or tag < first) then ref, queue, first = head, q, tag end
    end
  end
  return ref, queue, left
end
