-- Room: nothing is released that no worker can start. Slots of live workers, less what is out.

-- Whether nothing that has not begun may begin; whether the lane never waits for one of its calls to begin (see own_room); and
-- what start.wait_us asks for.
local wait_us
local function shut(lane)
  local h = redis.call('HMGET', lane_key(lane), FIELD.GATE, FIELD.AT_ONCE, FIELD.GAP, FIELD.UNPACED, FIELD.BOUNDS,
    FIELD.STARTS, FIELD.DEPTH[1], unpack(FIELD.PACE))
  local width = tonumber(h[2] or '0') or 0
  local closed = width > 0 and redis.call('ZCOUNT', out_key(lane), 1, 1) >= width
  if width == 0 or (tonumber(h[3] or '0') or 0) == 0 then  -- else a probe's own release has set the gate
    closed = closed or (tonumber(h[1] or '0') or 0) > now
  end
  for i = 1, N do
    closed = closed or (h[4] ~= '1' and (tonumber(h[7 + i] or '1') or 1) <= 0)
  end
  return closed, h[4] == '1' and not h[5], {pace = h[4] ~= '1' and tonumber(h[8]), depth = tonumber(h[7]), at = tonumber(h[6])}
end
-- How long a call that begins now has to wait before it is sent, µs, so that starts keep the pace too. Messages travel for some
-- ms, some longer than others: what left at its pace may begin as a burst, on top of what the bucket then lets go. A bucket
-- of starts (its virtual time: when it would be full again) takes half of what a lane may earn while a message travels, so that
-- it and the way from here to the provider are within that. Slow lanes have no two calls on the way at once.
-- known: as shut says of the lane
function wait_us(lane, known, cost)
  local pace, burst = known.pace, known.pace and known.pace * LOOK_S / 2
  if not pace or burst < 1 or cost <= 0 then return 0 end
  local full = known.at and known.at < now + STEP_US and math.max(now, known.at) or now
  local gap, depth = cost * 1e6 / pace, math.max(1, (known.depth or 1) - burst)
  redis.call('HSET', lane_key(lane), FIELD.STARTS, int(full + gap))
  return math.max(0, math.min(LOOK_S * 2e6, full - now - math.max(0, depth - cost) * 1e6 / pace))
end
-- Calls that are out on slots of crews. What an older version released counts too once it has no workers left, since then
-- it runs there; before that, as soon as the beat of a worker with a crew holds it (see beat.lua).
local function living(old)
  local n = redis.call('ZCARD', LEDGER) - aside.n()
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
  local sole = #crews == 1 and here == total           -- then what is out anywhere is out on it, or takes its place
  for _, c in ipairs(crews) do
    local taken = sole and alive or redis.call('SCARD', crew.out_key(c[1], queue))
    if not sole and taken > 0 then memo.oncrew[crew.at(c[1], queue)] = true end
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
-- What the lane itself may have out -> {free: how many more; out: how many it has; event: what it waits for when it is full,
-- that one of its calls begins, or ends; bound: the narrowest: begins (released and not begun), width (of the law),
-- concurrency (a person's), or lent (it holds all slots)}
local function own_room(L)
  local k = out_key(L.name)
  local out, most, event, bound = redis.call('ZCARD', k), 1e9, 'ends', nil
  memo.busy[L.name] = out > 0
  if not L.unlimited or L.parents then                 -- when workers stall, what was released must not start as a burst
    most = 1 + math.max(1, ahead(L)) - redis.call('ZCOUNT', k, 0, 0)
    bound = 'begins'
    if most <= 0 then event = 'begins' end
  end
  if L.at_once > 0 and L.at_once - out < most then most, bound = L.at_once - out, 'at_once' end
  if L.cap > 0 and L.cap - out < most then most, bound = L.cap - out, 'concurrency' end
  local held = out > 0 and crew.lent()[L.name]
  if held and held - out < most then most, bound, event = held - out, 'lent', 'ends' end
  return {free = most, out = out, event = event, bound = bound}
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
  local waiting = planned()
  if waiting > 0 and redis.call('ZSCORE', NEXT, L.name) then waiting = waiting - 1 end
  return waiting > 0 and free or free + math.min(here, SUPPLY)
end
