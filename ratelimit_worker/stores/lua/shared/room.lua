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
local function set_aside(tag, dead)                    -- dead: its worker has not been heard of, so others may have its turn
  if not redis.call('ZSCORE', LEDGER, tag) then return end
  local ref = split(tag)
  local r = record(ref)
  if r and redis.call('SADD', ASIDE, tag) == 1 then
    memo[ASIDE_N] = nil
    redis.call('SREM', crew.taken_key(r), tag)
    set_begun(tag, r)
    if dead and r[LOST] > 0 then suspect.back(ref) end
    note(r[LANE], now)                                 -- one that had not begun may have kept its lane full
  end
end
local function take_back(tag)
  if redis.call('SREM', ASIDE, tag) == 1 then
    memo[ASIDE_N] = nil
    local ref = split(tag)
    local r = record(ref)
    if r then
      redis.call('SADD', crew.taken_key(r), tag)
      if r[LOST] > 0 then suspect.mark(ref, r, true) end
    end
  end
end
-- Workers that live, counted once and kept until the first of them would expire: for a queue, the slots of all that have a
-- crew, those on this queue, its crews as {name, slots, free (see vacant), workers}, slots on it of workers of an older version, which
-- read other ready lists; and the slots of all such
local function slots(queue)
  local known = memo[queue]
  if known then return unpack(known) end
  local h = redis.call('HMGET', crew.SUMS, 'sums', 'q:' .. queue)
  local sums = h[1] and cmsgpack.unpack(h[1])
  if sums then memo[LEASE] = sums[3] end
  if sums and now <= sums[2] then
    local crews = h[2] and cmsgpack.unpack(h[2]) or {0, 0}
    memo[queue] = {sums[1], crews[1], {unpack(crews, 3)}, crews[2], sums[4]}
    return unpack(memo[queue])
  end
  local dead = memo[LOOKS] and {} or redis.call('ZRANGEBYSCORE', key('workers'), '-inf', '(' .. int(now))
  for _, w in ipairs(dead) do                          -- what they hold counts as taken until somebody has cleared it away
    local held = redis.call('HGET', key('held'), w)
    for _, tag in ipairs(held and cmsgpack.unpack(held) or {}) do set_aside(tag, true) end
    redis.call('ZREM', key('workers'), w)
    for _, of in ipairs({'slots', 'held', 'crew', 'lent'}) do redis.call('HDEL', key(of), w) end
  end
  local alive, total, old, by = {}, 0, 0, {}
  for _, w in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), int(now), '+inf')) do alive[w] = true end
  local function add(name, w, from)                    -- w: {…, queue from `from` on …}; name: its crew, nil: it has none
    local mine = w[from - 1]
    if name then total = total + mine else old = old + mine end
    for j = from, #w do
      local q = by[w[j]] or {0, 0}                     -- {slots, slots of an older version, {crew, slots} …}
      by[w[j]] = q
      if name then
        local c
        for k = 3, #q do c = q[k][1] == name and q[k] or c end
        if not c then c = {name, 0, false, 0}; q[#q + 1] = c end
        q[1], c[2], c[4] = q[1] + mine, c[2] + mine, c[4] + 1
      else
        q[2] = q[2] + mine
      end
    end
  end
  local flat = redis.call('HGETALL', key('crew'))
  for i = 1, #flat, 2 do
    local w = cmsgpack.unpack(flat[i + 1])
    if alive[flat[i]] then
      add(w[1], w, 3)
    elseif not memo[LOOKS] then
      redis.call('HDEL', key('crew'), flat[i])
    end
    alive[flat[i]] = nil
  end
  flat = redis.call('HGETALL', key('slots'))
  for i = 1, #flat, 2 do                               -- those of an older version: the others have been counted
    if alive[flat[i]] then
      add(string.find(flat[i], 'inproc:', 1, true) == 1 and crew.PLAIN or nil, cmsgpack.unpack(flat[i + 1]), 2)
    end
  end
  if not memo[LOOKS] then
    local first = redis.call('ZRANGE', key('workers'), 0, 0, 'WITHSCORES')
    redis.call('DEL', crew.SUMS)
    redis.call('HSET', crew.SUMS, 'sums', cmsgpack.pack({total, tonumber(first[2] or now), lease_us(), old}))
    for q, crews in pairs(by) do redis.call('HSET', crew.SUMS, 'q:' .. q, cmsgpack.pack(crews)) end
    redis.call('EXPIRE', crew.SUMS, 60)
  end
  local here = by[queue] or {0, 0}
  memo[queue] = {total, here[1], {unpack(here, 3)}, here[2], old}
  return unpack(memo[queue])
end
function suspect.processes(queue)                      -- workers that take calls of a queue
  local _, _, crews = slots(queue)
  local n = 0
  for _, c in ipairs(crews) do n = n + (c[4] or 1) end
  return math.max(1, n)
end
local function aside()
  memo[ASIDE_N] = memo[ASIDE_N] or redis.call('SCARD', ASIDE)
  return memo[ASIDE_N]
end
-- Calls that are out on slots of crews. What an older version released counts too once it has no workers left, since then
-- it runs there; before that, as soon as the beat of a worker with a crew holds it (see beat.lua).
local function living(old)
  local n = redis.call('ZCARD', LEDGER) - aside()
  for _, q in ipairs(old > 0 and redis.call('SMEMBERS', key('onqueues')) or {}) do
    n = n - redis.call('SCARD', crew.older_key(q))
  end
  return n
end
-- slots of a queue that are free, all that it has, and how many are taken on any. One crew owes what it has beyond its slots;
-- of several, each is asked for itself (crew.pick).
local function vacant(queue)
  local total, here, crews, _, old = slots(queue)
  if here == 0 then return 0, 0, 0 end
  local alive, free, most = living(old), 0, -1e9
  for _, c in ipairs(crews) do
    local taken = redis.call('SCARD', crew.out_key(c[1], queue))
    oncrew[crew.at(c[1], queue)] = taken > 0
    c[3] = c[2] - taken
    free, most = free + math.max(0, c[3]), math.max(most, c[3])
  end
  return math.min(free > 0 and free or most, total - alive), here, alive
end
-- calls that may be released before a slot is free, since a message travels
local function ahead(L)
  local pace = L.p[1]
  if L.parents then
    for _, P in ipairs(L.parents) do pace = P.p[1] and math.min(pace or P.p[1], P.p[1]) or pace end
  end
  return math.floor((pace or 0) * LOOK_S)
end
-- Calls that are lent keep no slot from others: they hang, or their lane has them beyond its share, and their workers run
-- as many more in their place (see beat.lua). For the lane itself they count: it never has more out than there are slots where
-- it has such calls. -> by lane, that bound; by queue, how many there are
function crew.lent()
  if not memo.lent then
    local bounds, on = {}, {}
    for _, packed in ipairs(aside() > 0 and redis.call('HVALS', crew.LENT) or {}) do
      for lane, queues in pairs(cmsgpack.unpack(packed)) do
        for q, n in pairs(queues) do
          bounds[lane], on[q] = math.max(bounds[lane] or 0, (select(2, slots(q)))), (on[q] or 0) + n
        end
      end
    end
    memo.lent = {bounds, on}
  end
  return unpack(memo.lent)
end
-- how many more the lane itself may have out; how many it has; what it waits for when it is full: that one of its calls
-- begins, or ends; and the narrowest bound: begins (released and not begun), width (of the law), concurrency (a person's), or
-- lent (it holds all slots)
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
  local held = out > 0 and crew.lent()[L.name]
  if held and held - out < most then most, bound, event = held - out, 'lent', 'ends' end
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
  if greedy then free = free - (select(2, crew.lent())[queue] or 0) end  -- what is lent is for those below their share
  if not L.unlimited or L.parents then return free + ahead(L) end
  -- a lane without pace keeps workers supplied, but not in the way of a lane with a pace
  if others > 0 or alive > out then return free end
  local waiting = redis.call('ZCARD', NEXT)
  memo[NEXT_EMPTY] = waiting == 0
  if waiting > 0 and redis.call('ZSCORE', NEXT, L.name) then waiting = waiting - 1 end
  return waiting > 0 and free or free + math.min(here, SUPPLY)
end
