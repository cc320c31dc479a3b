-- Forget calls that wait on a queue or lie ready there unread, for good. O(lanes + most · log waiting).
-- ARGV  now µs · queue · most
-- returns  {how many, 1 when there may be more}
local queue, most, n = ARGV[2], tonumber(ARGV[3]), 0
for _, lane in ipairs(redis.call('ZRANGE', key('lanes'), 0, -1)) do
  local before = n
  for _, k in ipairs({wait_key(lane, queue), due_key(lane, queue)}) do
    for _, ref in ipairs(redis.call('ZRANGE', k, 0, most - n - 1)) do
      local r = record(ref)
      redis.call('ZREM', k, ref)
      if r then forget(ref, r) end
      n = n + 1
    end
    if n >= most then break end
  end
  if n > before then
    release(lane, 1)
    if redis.call('EXISTS', queues_key(lane)) == 0 then redis.call('DEL', key('tenants:') .. lane) end
  end
  if n >= most then return {n, 1} end
end
for _, tag in ipairs(redis.call('SMEMBERS', onqueue_key(queue))) do
  local ref = split(tag)
  local r = record(ref)
  if r and r[VERSION] <= SCHEMA and r[PERMIT] ~= USED and unready(ref, r, tag) then
    leave(tag, r)
    forget(ref, r)
    after(r[LANE], 1, false)
    feed(1)
    n = n + 1
  end
end
return {n, 0}
