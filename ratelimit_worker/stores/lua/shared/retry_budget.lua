-- A retry whose backoff is over waits behind all that wait otherwise, so that permits which nobody else wants are its own.
-- While others wait it goes before them as long as the lane's budget has room: a tenth of the permits and ten a minute,
-- and never more than ten at once. Nor while nobody was answered since a sick answer, or probes alone go out: calls that
-- were not tried tell more of the provider. The lane keeps the budget as it was when it had given so many permits, and when.
local budget = {MOST = 10}
function budget.left(L)
  local h = redis.call('HMGET', lane_key(L.name), FIELD.RETRIES_LEFT, FIELD.RETRIES_SEQ, FIELD.RETRIES_AT, FIELD.SICK_ROW)
  if (tonumber(h[4] or '0') or 0) > 0 then return 0 end
  if not h[1] then return budget.MOST end
  local permits, us = math.max(0, L.seq - tonumber(h[2])), math.max(0, now - tonumber(h[3]))
  return math.min(budget.MOST, tonumber(h[1]) + KNOWN.RETRY_SHARE * permits + KNOWN.RETRIES_PER_US * us)
end
function budget.pay(L, left)
  redis.call('HSET', lane_key(L.name), FIELD.RETRIES_LEFT, real(left - 1), FIELD.RETRIES_SEQ, int(L.seq), FIELD.RETRIES_AT, int(now))
end
-- The first retry on the queues that have room, when the budget lets it go before the others that wait: it, its queue,
-- and the budget. Nothing is looked up for a lane in which no retries wait.
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
