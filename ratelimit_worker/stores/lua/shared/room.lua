-- Room: nothing is released that no worker can start. Slots of live workers, less what is out.

local function set_begun(tag, r)                       -- in all that counts what is out
  redis.call('ZADD', out_key(r[LANE]), 'XX', 1, tag)
  if r[PARENTS] then
    for _, parent in ipairs(r[PARENTS]) do redis.call('ZADD', out_key(parent), 'XX', 1, tag) end
  end
end
local function shut(lane)                              -- nothing that has not begun may begin
  local h = redis.call('HMGET', lane_key(lane), 'gate', 'width', 'gap', 'unlimited', 'p1', 'p2', 'p3', 'p4')
  local width = tonumber(h[2] or '0') or 0
  local closed = width > 0 and redis.call('ZCOUNT', out_key(lane), 1, 1) >= width
  if width == 0 or (tonumber(h[3] or '0') or 0) == 0 then  -- else a probe's own release has set the gate
    closed = closed or (tonumber(h[1] or '0') or 0) > now
  end
  for i = 1, N do
    closed = closed or (h[4] ~= '1' and (tonumber(h[4 + i] or '1') or 1) <= 0)
  end
  return closed
end
-- A call that is out takes a slot, but for those set aside: their worker died or takes no more calls, so that they run
-- (if they do) on slots that are not counted either. They keep their place in the ledger until their lease ends.
local function set_aside(tag)
  if not redis.call('ZSCORE', LEDGER, tag) then return end
  local ref = split(tag)
  local r = record(ref)
  if r and redis.call('SADD', ASIDE, tag) == 1 then
    memo[ASIDE_N] = nil
    redis.call('SREM', onqueue_key(r[QUEUE]), tag)
    set_begun(tag, r)
    if r[LOST] > 0 then suspect.back(ref) end
    note(r[LANE], now)                                 -- one that had not begun may have kept its lane full
  end
end
local function take_back(tag)
  if redis.call('SREM', ASIDE, tag) == 1 then
    memo[ASIDE_N] = nil
    local ref = split(tag)
    local r = record(ref)
    if r then
      redis.call('SADD', onqueue_key(r[QUEUE]), tag)
      if r[LOST] > 0 then suspect.mark(ref, 1) end
    end
  end
end
-- slots of the workers that live, in all and for one queue; the sums are kept until the first of them would expire
local function slots(queue)
  local known = memo[queue]
  if known then return known[1], known[2] end
  local k = key('room')
  local h = redis.call('HMGET', k, 'total', 'until', 'q:' .. queue, 'lease')
  if h[4] then memo[LEASE] = tonumber(h[4]) end
  if h[1] and now <= tonumber(h[2]) then
    local total, here = tonumber(h[1]), tonumber(h[3]) or 0
    memo[queue] = {total, here}
    return total, here
  end
  for _, w in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '-inf', '(' .. int(now))) do
    local held = redis.call('HGET', key('held'), w)
    for _, tag in ipairs(held and cmsgpack.unpack(held) or {}) do set_aside(tag) end
    redis.call('ZREM', key('workers'), w)
    redis.call('HDEL', key('slots'), w)
    redis.call('HDEL', key('held'), w)
  end
  local total, by = 0, {}
  for _, v in ipairs(redis.call('HVALS', key('slots'))) do
    local w = cmsgpack.unpack(v)
    total = total + w[1]
    for i = 2, #w do by[w[i]] = (by[w[i]] or 0) + w[1] end
  end
  local first = redis.call('ZRANGE', key('workers'), 0, 0, 'WITHSCORES')
  redis.call('DEL', k)
  redis.call('HSET', k, 'total', total, 'until', first[2] and int(tonumber(first[2])) or int(now), 'lease', lease_us())
  for q, n in pairs(by) do redis.call('HSET', k, 'q:' .. q, n) end
  redis.call('EXPIRE', k, 60)
  return total, by[queue] or 0
end
local function aside()
  memo[ASIDE_N] = memo[ASIDE_N] or redis.call('SCARD', ASIDE)
  return memo[ASIDE_N]
end
local function living() return redis.call('ZCARD', LEDGER) - aside() end
-- slots of a queue that are free, all that it has, and how many are taken on any
local function vacant(queue)
  local total, here = slots(queue)
  if here == 0 then return 0, 0, 0 end
  local alive = living()
  local taken = redis.call('SCARD', onqueue_key(queue))
  onqueue[queue] = taken > 0
  return math.min(here - taken, total - alive), here, alive
end
-- calls that may be released before a slot is free, since a message travels
local function ahead(L)
  local pace = L.p[1]
  if L.parents then
    for _, P in ipairs(L.parents) do pace = P.p[1] and math.min(pace or P.p[1], P.p[1]) or pace end
  end
  return math.floor((pace or 0) * LOOK_S)
end
-- how many more the lane itself may have out; how many it has; what it waits for when it is full: that one of its calls
-- begins, or ends; and the narrowest bound: begins (released and not begun), width (of the law), or concurrency (a person's)
local function own_room(L)
  local k = out_key(L.name)
  local out, most, event, bound = redis.call('ZCARD', k), 1e9, 'ends', nil
  busy[L.name] = out > 0
  if not L.unlimited or L.parents then                 -- when workers stall, what was released must not start as a burst
    most = 1 + math.max(1, ahead(L)) - redis.call('ZCOUNT', k, 0, 0)
    bound = 'begins'
    if most <= 0 then event = 'begins' end
  end
  if L.width > 0 and L.width - out < most then most, bound = L.width - out, 'width' end
  if L.cap > 0 and L.cap - out < most then most, bound = L.cap - out, 'concurrency' end
  return most, out, event, bound
end
-- how many more calls of this lane may go to this queue now; greedy: nobody else wants the slot
local function room(L, queue, out, greedy)
  local free, here, alive = vacant(queue)
  if here == 0 then return 0 end
  local k = row_key(queue)
  local others = redis.call('ZCARD', k)
  if others > 0 and redis.call('ZSCORE', k, L.name) then others = others - 1 end
  if others > 0 and not greedy then                    -- bulkhead: an equal share of the slots while others want one
    free = math.min(free, math.ceil(here / (others + 1)) - out)
  end
  if not L.unlimited or L.parents then return free + ahead(L) end
  -- a lane without pace keeps workers supplied, but not in the way of a lane with a pace
  if others > 0 or alive > out then return free end
  local waiting = redis.call('ZCARD', NEXT)
  memo[NEXT_EMPTY] = waiting == 0
  if waiting > 0 and redis.call('ZSCORE', NEXT, L.name) then waiting = waiting - 1 end
  return waiting > 0 and free or free + math.min(here, SUPPLY)
end
