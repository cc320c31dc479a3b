-- Room: slots of live workers, less the calls that are out. Nothing is released that no worker can start.

-- -> whether released calls may not begin now; whether the lane has no bound on calls that have not begun (see own_room); and
-- what bars.pause_us needs.
local function shut(lane)
  local h = redis.call('HMGET', lane_key(lane), FIELD.GATE, FIELD.AT_ONCE, FIELD.GAP, FIELD.UNPACED, FIELD.BOUNDS,
    FIELD.STARTS, FIELD.DEPTH[1], unpack(FIELD.PACE))
  local width = tonumber(h[2] or '0') or 0
  local closed = width > 0 and redis.call('ZCOUNT', out_key(lane), 1, 1) >= width
  if width == 0 or (tonumber(h[3] or '0') or 0) == 0 then  -- with a gap, the release of a probe has itself closed the gate
    closed = closed or (tonumber(h[1] or '0') or 0) > now
  end
  for i = 1, N do
    closed = closed or (h[4] ~= '1' and (tonumber(h[7 + i] or '1') or 1) <= 0)
  end
  return closed, h[4] == '1' and not h[5], {pace = h[4] ~= '1' and tonumber(h[8]), depth = tonumber(h[7]), at = tonumber(h[6])}
end
-- How many calls are out on slots of crews. Calls that an older version has released count too once that version has no workers,
-- since then crews run them; before that, once a worker of a crew reports one in its beat (see beat.lua).
local function living(old)
  local n = redis.call('ZCARD', LEDGER) - aside.n()
  for _, q in ipairs(old > 0 and redis.call('SMEMBERS', key('onqueues')) or {}) do
    n = n - redis.call('SCARD', crew.older_key(q))
  end
  return n
end
-- -> free slots of a queue (below 0: calls out beyond the slots), all its slots, and slots that are taken on any queue. With
-- several crews, each is also asked by itself (crew.pick).
local function vacant(queue)
  local total, here, crews, _, old = slots(queue)
  if here == 0 then return 0, 0, 0 end
  local b = memo.batch
  local alive, free, most = b and b.alive or living(old), 0, -1e9
  if b and old == 0 then b.alive = alive end           -- only calls of this lane go out meanwhile, see ledger.enter
  local sole = #crews == 1 and here == total           -- one crew has all slots, so all calls that are out take slots of it
  for _, c in ipairs(crews) do
    local taken = sole and alive or redis.call('SCARD', crew.out_key(c[1], queue))
    if not sole and taken > 0 then memo.oncrew[crew.at(c[1], queue)] = true end
    c[3] = c[2] - taken
    free, most = free + math.max(0, c[3]), math.max(most, c[3])
  end
  return math.min(free > 0 and free or most, total - alive), here, alive
end
-- calls that may be released before a slot is free, since messages take time to travel
local function ahead(L)
  local pace = L.p[1]
  if L.parents then
    for _, P in ipairs(L.parents) do pace = P.p[1] and math.min(pace or P.p[1], P.p[1]) or pace end
  end
  return math.floor((pace or 0) * LOOK_S)
end
-- The lane's own bounds on calls out -> {free: how many more may go; out: how many are out; event: what a full lane waits for,
-- that one of its calls 'begins' or 'ends'; bound: the narrowest: begins (too many are released and have not begun), at_once
-- (of the law), concurrency (set by a person), or lent (it has calls lent, and so many out as there are slots)}
local function own_room(L, queue)
  local k = out_key(L.name)
  local out, most, event, bound = redis.call('ZCARD', k), 1e9, 'ends', nil
  memo.busy[L.name] = out > 0
  if not L.unlimited or L.parents then                 -- if workers stall, released calls must not begin as a burst afterwards
    most = 1 + math.max(1, ahead(L)) - redis.call('ZCOUNT', k, 0, 0)
    bound = 'begins'
    if most <= 0 then event = 'begins' end
  end
  if L.at_once > 0 and L.at_once - out < most then     -- only then it matters how many of them have lost their worker
    local free = L.at_once - aside.living(L.name, queue)
    if free < most then most, bound = free, 'at_once' end
  end
  if L.cap > 0 and L.cap - out < most then most, bound = L.cap - out, 'concurrency' end
  local held = out > 0 and crew.lent(queue)[L.name]
  if held and held - out < most then most, bound, event = held - out, 'lent', 'ends' end
  return {free = most, out = out, event = event, bound = bound}
end
-- how many more calls of this lane may go to this queue now; greedy: no other lane wants the slot; most: more
-- are not asked for
local function room(L, queue, out, greedy, most)
  local free, here, alive = vacant(queue)
  if here == 0 then return 0 end
  local k = row_key(queue)
  local others = memo.sole == k and 0 or redis.call('ZCARD', k)
  if others > 0 and redis.call('ZSCORE', k, L.name) then others = others - 1 end
  if others > 0 and not greedy then                    -- bulkhead: an equal share of the slots while other lanes want one
    free = math.min(free, math.ceil(here / (others + 1)) - out)
  end
  if greedy then free = free - (select(2, crew.lent())[queue] or 0) end  -- slots of lent calls are for lanes below their share
  if not L.unlimited or L.parents then return free + ahead(L) end
  -- a lane without a pace keeps some calls ready for the workers, but not if a lane with a pace needs the slots
  if others > 0 or alive > out or free >= most then return free end
  local waiting = pump.planned()
  if waiting > 0 and redis.call('ZSCORE', NEXT, L.name) then waiting = waiting - 1 end
  return waiting > 0 and free or free + math.min(here, SUPPLY)
end
