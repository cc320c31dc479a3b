-- Buckets of a lane and its parents: their levels, what a call takes from them, and what goes back.

-- Parts of L by dimension: p pace (units/s; absent: no pace; 0: closed), l level, including o, what was given back beyond the
-- depth (see reconcile), d depth, g guard, c units sent in all (refused calls too). L.kept: values as they were read.
local FIELDS = {FIELD.AT, FIELD.GATE, FIELD.CONCURRENCY, FIELD.UNPACED, FIELD.SEQ, FIELD.START, FIELD.AT_ONCE, FIELD.GAP,
  FIELD.SCHEMA}
for i = 1, N do FIELDS[9 + i], FIELDS[13 + i] = FIELD.SENT[i], FIELD.PACE[i] end
FIELDS[18], FIELDS[19], FIELDS[20] = FIELD.HEADERS_GOVERN, FIELD.MODE, FIELD.BOUNDS
FIELDS.OF_PARENT = {unpack(FIELDS)}
FIELDS.OF_PARENT[21] = FIELD.TURN
-- Fields that are read of the dimensions with a pace, by which these are: the sum of 2^(i - 1) over them.
local BUCKETS = {}
for paced = 1, 2 ^ N - 1 do
  BUCKETS[paced] = {}
  for i = 1, N do
    for _, field in ipairs(paced % 2 ^ i >= 2 ^ (i - 1) and {'LEVEL', 'DEPTH', 'GUARD', 'BEYOND'} or {}) do
      BUCKETS[paced][#BUCKETS[paced] + 1] = FIELD[field][i]
    end
  end
end
-- Days of a zone, as policy/day.py writes it down: {from s, offset s, from s, offset s, ...}; nil: UTC.
local DAY = {FIELDS = {'requests', 'tokens'}, TTL_S = 172800}
function DAY.offset(zone, at)                          -- µs that its clock is ahead of UTC
  local offset = 0
  for i = 1, zone and #zone or 0, 2 do
    if at >= zone[i] * 1e6 then offset = zone[i + 1] * 1e6 end
  end
  return offset
end
function DAY.number(zone, at) return math.floor((at + DAY.offset(zone, at)) / DAY_US) end
function DAY.ends(zone, day)
  local midnight = (day + 1) * DAY_US
  local near = midnight - DAY.offset(zone, midnight)
  local earlier, later = DAY.offset(zone, near - 7.2e9), DAY.offset(zone, near + 7.2e9)
  local at = midnight - math.max(earlier, later)
  return at + DAY.offset(zone, at) >= midnight and at or midnight - math.min(earlier, later)  -- there may be no midnight, or two
end
-- The month of a day, counted from January of the year 0 (Hinnant, "chrono-compatible low-level date algorithms"), and the first
-- day of a month.
function DAY.month(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local from_march = math.floor((5 * (doe - 365 * yoe - math.floor(yoe / 4) + math.floor(yoe / 100)) + 2) / 153)
  return (yoe + era * 400) * 12 + from_march + 2
end
function DAY.first_of(month)
  local year, from_march = math.floor((month - 2) / 12), (month - 2) % 12
  local era = math.floor(year / 400)
  local yoe = year - era * 400
  return era * 146097 + yoe * 365 + math.floor(yoe / 4) - math.floor(yoe / 100) + math.floor((153 * from_march + 2) / 5) - 719468
end
BUCKETS.NONE = {}                                       -- the parts of a lane without a pace, which nobody changes
-- Reads the levels of a lane, which have risen at its paces for `dt` seconds.
function BUCKETS.fill(L, paces, dt)
  local paced, at = 0, 0
  for i = 1, N do
    if paces[i] then paced = paced + 2 ^ (i - 1) end
  end
  if paced == 0 then return end
  L.p, L.l, L.d, L.g, L.o = paces, {}, {}, {}, {}
  local b = redis.call('HMGET', lane_key(L.name), unpack(BUCKETS[paced]))
  for i = 1, N do
    if paces[i] then
      L.d[i], L.g[i], L.o[i] = tonumber(b[at + 2]) or 1, tonumber(b[at + 3]) or 0, tonumber(b[at + 4]) or 0
      L.l[i] = math.min(L.d[i], (tonumber(b[at + 1]) or L.d[i]) + paces[i] * dt) + L.o[i]
      at = at + 4
    end
  end
end
-- A lane's bounds, decoded -> {parents, rpd, tpd, dollars, zone, steps}. They are decoded once, of KEPT lanes: nobody changes the
-- table, and another text is decoded anew.
BUCKETS.KEPT, BUCKETS.bounds, BUCKETS.n = 100, {}, 0
function BUCKETS.bounds_of(text)
  local bounds = BUCKETS.bounds[text]
  if not bounds then
    if BUCKETS.n >= BUCKETS.KEPT then BUCKETS.bounds, BUCKETS.n = {}, 0 end
    bounds = cjson.decode(text)
    BUCKETS.bounds[text], BUCKETS.n = bounds, BUCKETS.n + 1
  end
  return bounds
end
-- Reads few fields, since each costs as much as a look-up. of_parent: the lane is a parent, and has turns
local function bucket(lane, of_parent)
  local h = redis.call('HMGET', lane_key(lane), unpack(of_parent and FIELDS.OF_PARENT or FIELDS))
  local L = {name = lane, was = tonumber(h[1]), gate = tonumber(h[2]) or 0, cap = tonumber(h[3]) or 0,
    unlimited = h[4] == '1', seq = tonumber(h[5]) or 0, v = (tonumber(h[6]) or 0) % BAND, at_once = tonumber(h[7]) or 0,
    gap = tonumber(h[8]) or 0, schema = h[9], headers_govern = tonumber(h[18]) == 1, mode = h[19],
    turn = of_parent and (tonumber(h[21]) or 0) or nil,  -- start tag of its lanes' last turn, as v is for calls
    p = BUCKETS.NONE, l = BUCKETS.NONE, d = BUCKETS.NONE, g = BUCKETS.NONE, o = BUCKETS.NONE}
  local c1, c2, c3, c4 = tonumber(h[10]) or 0, tonumber(h[11]) or 0, tonumber(h[12]) or 0, tonumber(h[13]) or 0
  L.c, L.kept = {c1, c2, c3, c4}, {c1, c2, c3, c4, gate = L.gate, v = L.v, turn = L.turn}
  if L.was and L.was > now + STEP_US then              -- the clock was set back: fill from now on
    L.was = now
    if not asking then redis.call('HSET', lane_key(lane), FIELD.AT, whole(now)) end
  end
  local from = L.was or now
  if L.headers_govern then from = math.max(from, L.gate) end
  if not L.unlimited and (h[14] or h[15] or h[16] or h[17]) then
    BUCKETS.fill(L, {tonumber(h[14]), tonumber(h[15]), tonumber(h[16]), tonumber(h[17])}, math.max(0, now - from) / 1e6)
  end
  if h[20] then                                        -- only some lanes have these
    local bounds = BUCKETS.bounds_of(h[20])
    L.names = bounds.parents
    if bounds.usd_per_day or bounds.usd_per_month then L.money = bounds end
    if bounds.rpd or bounds.tpd then                   -- quotas of the day, and what is used, in the order of DAY.FIELDS
      L.zone, L.quota = bounds.steps, {bounds.rpd or false, bounds.tpd or false}
      L.day = DAY.number(L.zone, now)
      local used = redis.call('HMGET', day_key(lane, L.day), unpack(DAY.FIELDS))
      L.used = {tonumber(used[1]) or 0, tonumber(used[2]) or 0}
    end
  end
  return L
end
-- A lane with its parents: budgets that it shares with other lanes. A parent is a lane too, but has no parents.
-- names: the parents that a call was charged to; nil: the lane's parents as of now
local function load(lane, names)
  local L = bucket(lane)
  names = names or L.names
  if names and #names > 0 then
    L.parents, L.names = {}, names
    for i, name in ipairs(names) do
      L.parents[i] = bucket(name, true)
    end
  else
    L.parents, L.names = nil, nil
  end
  return L
end
-- Writes what scripts change (levels, counters, gate), and never the set-points.
local function save(L)
  local args = {FIELD.AT, whole(math.max(now, L.was or 0)), FIELD.SEQ, whole(L.seq)}
  local n = #args
  local function put(name, value) args[n + 1], args[n + 2], n = name, value, n + 2 end
  if L.v ~= L.kept.v or not L.was then put(FIELD.START, whole(L.v)) end
  if L.gate ~= L.kept.gate or not L.was then put(FIELD.GATE, whole(L.gate)) end
  for i = 1, N do
    if L.p[i] then
      local over = math.max(0, L.l[i] - L.d[i])
      put(FIELD.LEVEL[i], L.l[i] - over)
      if over ~= L.o[i] then put(FIELD.BEYOND[i], over) end
    end
    if L.c[i] ~= L.kept[i] then put(FIELD.SENT[i], L.c[i]) end
  end
  if L.turn and L.turn ~= L.kept.turn then put(FIELD.TURN, whole(L.turn)) end
  redis.call('HSET', lane_key(L.name), unpack(args))
  if L.counted then
    local k = day_key(L.name, L.day)
    if redis.call('HSET', k, 'requests', L.used[1], 'tokens', L.used[2]) > 0 then
      redis.call('EXPIRE', k, DAY.TTL_S)
    end
  end
  if L.parents then
    for _, P in ipairs(L.parents) do save(P) end
  end
  if not L.was or math.floor(L.was / HOUR_US) ~= math.floor(now / HOUR_US) then
    local left = redis.call('TTL', lane_key(L.name))
    if left < TTL_S.LANE then redis.call('EXPIRE', lane_key(L.name), TTL_S.LANE) end
    redis.call('ZADD', key('lanes'), whole(now), L.name)
  end
end
-- Makes a lane, with fields and values from ARGV[from] on, unless it exists -> whether it was made; nil: there are `most` lanes
-- already (0: no bound).
local function make(lane, from, most)
  if most > 0 and redis.call('ZCARD', key('lanes')) >= most and redis.call('EXISTS', lane_key(lane)) == 0 then
    count('refused_lanes')
    return nil
  end
  if redis.call('HSETNX', lane_key(lane), FIELD.SCHEMA, SCHEMA) == 0 then return false end
  for i = from, #ARGV - 1, 2 do                        -- HSETNX: what a person has set before stays
    if ARGV[i + 1] ~= '' then redis.call('HSETNX', lane_key(lane), ARGV[i], ARGV[i + 1]) end
  end
  redis.call('SADD', key('seen'), lane)                -- so that the tuner looks at it: at first the pace doubles with time
  return true
end
-- -> µs until gate, pace and quota all admit the cost (0: now; nil: not before new set-points), and which of them is the last.
-- say({kind, wait_us, which}) is called for each that does not admit it now; wait_us nil: closed; which: the dimension of a pace,
-- or the position of a quota in DAY.FIELDS
local function admits_in(L, cost, say)
  local wait, kind, closed = math.max(0, L.gate - now), 'gate', false
  local idle = L.headers_govern and wait or 0           -- with headers nothing is added behind a gate, see bucket
  if say and wait > 0 then say({kind = 'gate', wait_us = wait}) end
  for i = 1, N do
    local pace = L.p[i]
    if pace then
      local need = math.min(cost[i], L.d[i] - L.g[i]) + L.g[i]
      if pace <= 0 then
        if not say then return nil, 'pace' end
        closed = true
        say({kind = 'pace', which = i})
      elseif L.l[i] + 1e-9 < need then
        local us = idle + math.ceil((need - L.l[i]) / pace * 1e6)
        if say then say({kind = 'pace', wait_us = us, which = i}) end
        if us > wait then wait, kind = us, 'pace' end
      end
    end
  end
  for i = 1, L.quota and 2 or 0 do                      -- a call larger than the quota may go while none of it is used
    local quota = L.quota[i]
    if quota and L.used[i] + math.min(cost[i], quota) > quota + 1e-9 then
      local us = DAY.ends(L.zone, L.day) - now
      if say then say({kind = 'quota', wait_us = us, which = i}) end
      if us > wait then wait, kind = us, 'quota' end
    end
  end
  if closed then return nil, 'pace' end
  return wait, kind
end
-- by: 1 spent, -1 given back; at: when it was spent, µs
local function use_quota(L, cost, by, at)
  if DAY.number(L.zone, at) ~= L.day then return end  -- yesterday's quota does not matter any more
  for i = 1, 2 do L.used[i] = math.max(0, L.used[i] + by * cost[i]) end
  L.counted = true
end
local wake                                             -- in plan.lua: has the lanes that wait for a parent looked at
local function spend(L, cost)
  L.seq = L.seq + 1
  if L.quota then use_quota(L, cost, 1, now) end
  if L.parents then
    for _, P in ipairs(L.parents) do spend(P, cost) end
  end
  for i = 1, N do
    if L.p[i] then L.l[i] = L.l[i] - cost[i] end
    L.c[i] = L.c[i] + cost[i]
  end
  if L.at_once > 0 and L.gap > 0 then                  -- ± 20 %, spread evenly by the golden ratio, so that lanes do not probe in step
    L.gate = math.max(L.gate, now + math.floor(L.gap * (0.8 + 0.4 * ((L.seq * 0.6180339887) % 1))))
  end
end
-- Gives back what a permit took from the day's quota and from the parents. at: when it was spent, µs
local refund
local function refund_beside(L, cost, at)
  if L.quota then use_quota(L, cost, -1, at) end
  if L.parents then
    for _, P in ipairs(L.parents) do refund(P, cost, at); wake(P.name) end
  end
end
function refund(L, cost, at)                           -- gives back a whole permit that was not used
  refund_beside(L, cost, at)
  for i = 1, N do
    if L.p[i] then L.l[i] = math.max(L.l[i], math.min(L.d[i], L.l[i] + cost[i])) end
    L.c[i] = L.c[i] - cost[i]
  end
end
