-- Delete calls that wait on a queue, or are in its ready lists unread, with their followers on that queue. If a deleted leader
-- has followers on other queues, one of them takes its place. O(lanes + most · log waiting + followers).
-- ARGV  now µs · queue · most
-- returns  {how many, 1 when there may be more}
local queue, most, n = ARGV[2], tonumber(ARGV[3]), 0
local function purge(ref, r)
  local followers = r[CLAIM] and redis.call('GET', claim_key(r[CLAIM])) == ref and followers_key(r[CLAIM])
  for _, follower in ipairs(followers and redis.call('ZRANGE', followers, 0, -1) or {}) do
    local f = record(follower)
    if f and f[QUEUE] == queue then
      redis.call('ZREM', followers, follower)
      forget(follower, f, true)
      n = n + 1
    end
  end
  forget(ref, r, true)
  n = n + 1
end
for _, lane in ipairs(redis.call('ZRANGE', key('lanes'), 0, -1)) do
  local before = n
  for _, k in ipairs({wait_key(lane, queue), due_key(lane, queue)}) do
    for _, ref in ipairs(redis.call('ZRANGE', k, 0, math.max(0, most - n - 1))) do
      local r = record(ref)
      census.change(queue, -redis.call('ZREM', k, ref))
      if r then purge(ref, r) else n = n + 1 end
    end
    if n >= most then break end
  end
  if n > before then
    release(lane, 1)
    if redis.call('EXISTS', queues_key(lane)) == 0 then redis.call('DEL', key('tenants:') .. lane) end
  end
  if n >= most then return {n, 1} end
end
local out = {crew.older_key(queue)}
for _, name in ipairs(crew.names(queue)) do out[#out + 1] = crew.out_key(name, queue) end
for _, k in ipairs(out) do
  for _, tag in ipairs(redis.call('SMEMBERS', k)) do
    local ref = split(tag)
    local r = record(ref)
    if r and r[VERSION] <= SCHEMA and r[PERMIT] ~= USED and unready(ref, r, tag) then
      ledger.leave(tag, r)
      purge(ref, r)
      after(r[LANE], 1, false)
      feed(1)
    end
  end
end
return {n, 0}
