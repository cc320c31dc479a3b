-- Budgets of a lane and its parents: what they hold, what a call takes from them and gets back.

-- By dimension, in L: p pace (units/s; absent: that dimension is not bound; 0: closed), l level, with what was given back
-- beyond the depth (o, see reconcile), d depth, g guard, c sent in all (refused ones too)
local FIELDS = {FIELD.AT, FIELD.GATE, FIELD.CONCURRENCY, FIELD.UNPACED, FIELD.SEQ, FIELD.START, FIELD.AT_ONCE, FIELD.GAP,
  FIELD.SCHEMA}
for i = 1, N do FIELDS[9 + i], FIELDS[13 + i] = FIELD.SENT[i], FIELD.PACE[i] end
FIELDS[18], FIELDS[19], FIELDS[20] = FIELD.HEADERS_GOVERN, FIELD.MODE, FIELD.BOUNDS
local BUCKETS = {}                                     -- by dimension: what is read of one that is bound
for i = 1, N do BUCKETS[i] = {FIELD.LEVEL[i], FIELD.DEPTH[i], FIELD.GUARD[i], FIELD.BEYOND[i]} end
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
  return midnight - DAY.offset(zone, midnight - DAY.offset(zone, midnight))
end
local function bucket(lane)                            -- each field that is read or written costs as much as a look-up
  local h = redis.call('HMGET', lane_key(lane), unpack(FIELDS))
  local L = {name = lane, was = tonumber(h[1]), gate = tonumber(h[2]) or 0, cap = tonumber(h[3]) or 0,
    unlimited = h[4] == '1', seq = tonumber(h[5]) or 0, v = (tonumber(h[6]) or 0) % BAND, at_once = tonumber(h[7]) or 0,
    gap = tonumber(h[8]) or 0, schema = h[9], headers_govern = tonumber(h[18]) == 1, mode = h[19],
    p = {}, l = {}, d = {}, g = {}, o = {}, c = {}, kept = {}}
  L.kept.gate, L.kept.v = L.gate, L.v
  if L.was and L.was > now + STEP_US then              -- the clock was set back: earn from now on, not in an hour
    L.was = now
    if not asking then redis.call('HSET', lane_key(lane), FIELD.AT, int(now)) end
  end
  local from = L.was or now
  if L.headers_govern then from = math.max(from, L.gate) end
  local dt = math.max(0, now - from) / 1e6
  for i = 1, N do
    L.c[i] = tonumber(h[9 + i]) or 0
    L.kept[i] = L.c[i]
    local pace = not L.unlimited and tonumber(h[13 + i])
    if pace then
      local b = redis.call('HMGET', lane_key(lane), unpack(BUCKETS[i]))
      L.p[i], L.d[i], L.g[i] = pace, tonumber(b[2]) or 1, tonumber(b[3]) or 0
      L.o[i] = tonumber(b[4]) or 0
      L.l[i] = math.min(L.d[i], (tonumber(b[1]) or L.d[i]) + pace * dt) + L.o[i]
    end
  end
  if h[20] then                                        -- what only some lanes have: {parents, rpd, tpd, zone, steps}
    local bounds = cjson.decode(h[20])
    L.names = bounds.parents
    if bounds.rpd or bounds.tpd then                   -- of the day, in the order of DAY.FIELDS: quota, used
      L.zone, L.quota = bounds.steps, {bounds.rpd or false, bounds.tpd or false}
      L.day = DAY.number(L.zone, now)
      local used = redis.call('HMGET', day_key(lane, L.day), unpack(DAY.FIELDS))
      L.used = {tonumber(used[1]) or 0, tonumber(used[2]) or 0}
    end
  end
  return L
end
-- A lane with its parents: budgets that it shares with others, lanes themselves but without parents of their own.
-- names: those that a call was charged to; nil: those that the lane has now
local function load(lane, names)
  local L = bucket(lane)
  names = names or L.names
  if names and #names > 0 then
    L.parents, L.names = {}, names
    for i, name in ipairs(names) do
      local P = bucket(name)
      P.turn = tonumber(redis.call('HGET', lane_key(name), FIELD.TURN) or '0')  -- start of the last turn: fair, as v is
      P.kept.turn, L.parents[i] = P.turn, P
    end
  else
    L.parents, L.names = nil, nil
  end
  return L
end
-- writes what scripts change (levels, counters, gate), never the set-points
local function save(L)
  local args = {FIELD.AT, int(math.max(now, L.was or 0)), FIELD.SEQ, int(L.seq)}
  local n = #args
  local function put(name, value) args[n + 1], args[n + 2], n = name, value, n + 2 end
  if L.v ~= L.kept.v or not L.was then put(FIELD.START, int(L.v)) end
  if L.gate ~= L.kept.gate or not L.was then put(FIELD.GATE, int(L.gate)) end
  for i = 1, N do
    if L.p[i] then
      local over = math.max(0, L.l[i] - L.d[i])
      put(FIELD.LEVEL[i], real(L.l[i] - over))
      if over ~= L.o[i] then put(FIELD.BEYOND[i], real(over)) end
    end
    if L.c[i] ~= L.kept[i] then put(FIELD.SENT[i], real(L.c[i])) end
  end
  if L.turn and L.turn ~= L.kept.turn then put(FIELD.TURN, int(L.turn)) end
  redis.call('HSET', lane_key(L.name), unpack(args))
  if L.counted then
    local k = day_key(L.name, L.day)
    if redis.call('HSET', k, 'requests', real(L.used[1]), 'tokens', real(L.used[2])) > 0 then
      redis.call('EXPIRE', k, DAY.TTL_S)
    end
  end
  if L.parents then
    for _, P in ipairs(L.parents) do save(P) end
  end
  if not L.was or math.floor(L.was / HOUR_US) ~= math.floor(now / HOUR_US) then
    local left = redis.call('TTL', lane_key(L.name))
    if left < TTL_S.LANE then redis.call('EXPIRE', lane_key(L.name), TTL_S.LANE) end
    redis.call('ZADD', key('lanes'), int(now), L.name)
  end
end
-- A lane that is not there yet gets fields and values from ARGV[from] on -> whether it was not there; nil: there are `most`
-- lanes already (0: no bound).
local function make(lane, from, most)
  if most > 0 and redis.call('ZCARD', key('lanes')) >= most and redis.call('EXISTS', lane_key(lane)) == 0 then
    count('refused_lanes')
    return nil
  end
  if redis.call('HSETNX', lane_key(lane), FIELD.SCHEMA, SCHEMA) == 0 then return false end
  for i = from, #ARGV - 1, 2 do                        -- what a person has set before stays
    if ARGV[i + 1] ~= '' then redis.call('HSETNX', lane_key(lane), ARGV[i], ARGV[i + 1]) end
  end
  redis.call('SADD', key('seen'), lane)                -- what is not known of it changes with time alone
  return true
end
-- µs until every dimension admits the cost (0: now; nil: closed until set-points change); and which is the last to do so: gate,
-- pace or quota. say({kind, wait_us, which}): is told of each that does not; pace (nil: closed) of a dimension, quota of a day in
-- the order of DAY.FIELDS
local function admits_in(L, cost, say)
  local wait, kind, closed = math.max(0, L.gate - now), 'gate', false
  local idle = L.headers_govern and wait or 0           -- what headers tell is not earned behind the gate, see bucket
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
  for i = 1, L.quota and 2 or 0 do                      -- one larger than the quota goes when none of it is used
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
-- by: +1 spent, -1 given back; at: when it was spent, µs
local function use_quota(L, cost, by, at)
  if DAY.number(L.zone, at) ~= L.day then return end  -- yesterday's quota is nobody's any more
  for i = 1, 2 do L.used[i] = math.max(0, L.used[i] + by * cost[i]) end
  L.counted = true
end
local wake                                             -- below: lanes that wait for a parent are looked at
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
  if L.at_once > 0 and L.gap > 0 then                  -- ± 20 %, by the golden section of the number: lanes fall out of step
    L.gate = math.max(L.gate, now + math.floor(L.gap * (0.8 + 0.4 * ((L.seq * 0.6180339887) % 1))))
  end
end
-- What a permit took beside the lane's own levels goes back: of the day's quota, and of its parents. at: when it was spent, µs
local refund
local function refund_beside(L, cost, at)
  if L.quota then use_quota(L, cost, -1, at) end
  if L.parents then
    for _, P in ipairs(L.parents) do refund(P, cost, at); wake(P.name) end
  end
end
function refund(L, cost, at)                           -- of a permit that no start has used
  refund_beside(L, cost, at)
  for i = 1, N do
    if L.p[i] then L.l[i] = math.max(L.l[i], math.min(L.d[i], L.l[i] + cost[i])) end
    L.c[i] = L.c[i] - cost[i]
  end
end
