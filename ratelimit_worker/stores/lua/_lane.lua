-- The shared part of the library: names of keys, the lane's buckets, room, release, return. It runs once, when the library
-- is loaded; each script runs as a function after `start`. K (the key prefix) and SCHEMA stand above, set by scripts.py.
local now, ARGV                                        -- of the call that runs; µs
local memo                                             -- what it has looked up and nothing else changes meanwhile
local busy, onqueue                                    -- lanes and queues of which calls are known to be out
local stood                                            -- the parents in whose rows the lane stands that was released last
local function start(args)                             -- args[1]: the time, µs; 0: this server's clock
  ARGV, now, memo, busy, onqueue = args, tonumber(args[1]), {}, {}, {}
  if now == 0 then
    local t = redis.call('TIME')
    now = t[1] * 1000000 + t[2]
  end
end

local DAY_US, HOUR_US = 86400e6, 3600e6
local LANE_TTL_S, TENANT_TTL_S, PUBLISHED_TTL_S = 2592000, 3600, 60
local STEP_US = 1e6                                    -- a clock that goes back by more than this was set back
local LOOK_S = 0.02                                    -- what a paced lane may earn while a message travels
local AGES_S = {[0] = 0, 60, 300}                      -- high, normal, low: seconds of service after which a call is high
local BAND = 1.4e15                                    -- tags of a class lie in a band of their own: years of service
local RETRIES = 3                                      -- bands of retries, in the same order, behind those of the classes;
local BEHIND = RETRIES * BAND                          -- a double holds every tag of the six exactly
local BANDS = {high = 0, normal = BAND, low = 2 * BAND}
local TAGS, WORTH = 1e4, {1, 1000, 1000, 1000}         -- tags of a call's worth of service; units that are worth a call
local N = 4                                            -- dimensions: requests, tokens, input_tokens, output_tokens
local SICK_ROW = 5                                     -- sick answers in a row: the provider is away
local HALT_US = 300e6                                  -- between probes of a lane without quota
local REFS = 9                                         -- messages of one task id that may be in lanes at once
local TRIES = 8                                        -- lanes that are asked for one free slot
local SUPPLY = 8                                       -- calls that may lie ready for the next free slots
local SURPLUS = 8                                      -- calls without a permit that may lie ready beyond the slots
local FOLLOWERS = 1000                                 -- of one claim: settle gives each its answer in one step
local DEGRADED = {EMERGENCY = true, HALT = true}       -- modes in which calls are answered without their provider, if they may
local SUSPECT_US, PART = 1e6, 16                       -- a suspect asks again after; of more than PART, a PARTth may try at once
local DEGRADED_AT_ONCE = 100                           -- waiting calls that are so answered in one step
-- A call's record, packed in field i of its hash. Newer versions only append; what they change otherwise is a new SCHEMA.
local VERSION, LANE, QUEUE, SCORE, CLASS, TENANT, COST, ACCEPTED, DEADLINE, RELEASE, ATTEMPTS, LOST, PERMIT, RESTORED,
  TICKET, PUB, SINCE, NUMBER, WEIGHT, BORN, CLAIM = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
  20, 21                                               -- CLAIM: its fingerprint; absent or false: it shares nothing
local DEGRADES, PARENTS = 22, 23                       -- what it may get in place of its turn: a sum of these; absent or false:
local STALE, SHED = 1, 2                               -- nothing: an answer that is past its time; an error
                                                       -- PARENTS: that it was charged to; absent: none, or it is not out
local NOTHING = {0, 0, 0, 0}                           -- a cost
local NONE, TAKEN, USED = 0, 1, 2                      -- PERMIT: none, taken from the bucket, used by a start

local function int(x) return string.format('%.0f', x) end
local function real(x) return string.format('%.17g', x) end
local function key(name) return K .. 'rlw:' .. name end
local function lane_key(lane) return key('lane:') .. lane end
local function wait_key(lane, queue) return key('wait:') .. #lane .. ':' .. lane .. ':' .. queue end
local function due_key(lane, queue) return key('due:') .. #lane .. ':' .. lane .. ':' .. queue end
local function queues_key(lane) return key('queues:') .. lane end
local function out_key(lane) return key('out:') .. lane end
local function row_key(queue) return key('hungry:') .. queue end
local function onqueue_key(queue) return key('onqueue:') .. queue end
local function call_key(ref) return key('call:') .. ref end
local function turns_key(parent) return key('turns:') .. parent end
local function shares_key(parent) return key('shares:') .. parent end
local function day_key(lane, day) return key('day:') .. int(day) .. ':' .. lane end
local function claim_key(fp) return key('claim:') .. fp end
local function followers_key(fp) return key('followers:') .. fp end
local function degradable_key(lane) return key('degradable:') .. lane end
local function cache_key(fp) return key('cache:') .. fp end
local LEDGER, ASIDE, NEXT, HUNGRY, FULL = key('ledger'), key('aside'), key('next'), key('hungry'), key('full')
local PUMP, EXPIRY, ANSWERED, SUSPECTS = key('pump'), key('expiry'), key('answered'), key('suspects')
local CACHE_USED, CACHE_ENDS, CACHE_SIZES = key('cache:used'), key('cache:ends'), key('cache:sizes')
local function count(name, by) return redis.call('HINCRBY', key('counters'), name, by or 1) end

local function record(ref)
  local packed = redis.call('HGET', call_key(ref), 'i')
  return packed and cmsgpack.unpack(packed)
end
-- message: its text, with a place for the tag; given once, with a new record
local function keep(ref, r, message)
  if message then
    redis.call('HSET', call_key(ref), 'i', cmsgpack.pack(r), 'm', message)
  else
    redis.call('HSET', call_key(ref), 'i', cmsgpack.pack(r))
  end
end
-- A tag is the reference of a call and the number of its release; no number is given out twice, so that nobody who comes
-- late (a worker that was frozen, an ack from a life before) can touch what is another's by now.
local function split(tag)
  local ref, n = string.match(tag, '^(.*)%.(%d+)$')
  return ref or tag, tonumber(n) or 0
end
local function ttl_of(r) return math.ceil((r[DEADLINE] - now + DAY_US) / 1e6) end
local function released() return tonumber(redis.call('HGET', key('counters'), 'released') or '0') end

-- ── buckets ──────────────────────────────────────────────────────────────────────────────────────────────────────
-- p1..p4 pace (units/s; absent: that dimension is not bound; 0: closed), l level, d depth, g guard, c sent in all (refused
-- ones too), x of these refused, o what was given back beyond the depth (see reconcile), part of the level in L
local FIELDS = {'ts', 'gate', 'cap', 'unlimited', 'seq', 'v', 'width', 'gap', 'schema',
  'c1', 'c2', 'c3', 'c4', 'p1', 'p2', 'p3', 'p4', 'told', 'mode', 'bounds'}
local BUCKETS = {}                                     -- by dimension: what is read of one that is bound
for i = 1, N do BUCKETS[i] = {'l' .. i, 'd' .. i, 'g' .. i, 'o' .. i} end
local DAY_FIELDS, DAY_TTL_S = {'requests', 'tokens'}, 172800
local function bucket(lane)                            -- each field that is read or written costs as much as a look-up
  local h = redis.call('HMGET', lane_key(lane), unpack(FIELDS))
  local L = {name = lane, was = tonumber(h[1]), gate = tonumber(h[2]) or 0, cap = tonumber(h[3]) or 0,
    unlimited = h[4] == '1', seq = tonumber(h[5]) or 0, v = (tonumber(h[6]) or 0) % BAND, width = tonumber(h[7]) or 0,
    gap = tonumber(h[8]) or 0, schema = h[9], told = h[18] == '1', mode = h[19], p = {}, l = {}, d = {}, g = {}, o = {},
    c = {}, kept = {}}
  L.kept.gate, L.kept.v = L.gate, L.v
  if L.was and L.was > now + STEP_US then              -- the clock was set back: earn from now on, not in an hour
    L.was = now
    redis.call('HSET', lane_key(lane), 'ts', int(now))
  end
  local from = L.was or now
  if L.told then from = math.max(from, L.gate) end
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
  if h[20] then                                        -- what only some lanes have: {parents, rpd, tpd}
    local bounds = cjson.decode(h[20])
    L.names = bounds.parents
    if bounds.rpd or bounds.tpd then                   -- of the day, in the order of DAY_FIELDS: quota, used
      L.day, L.quota = math.floor(now / DAY_US), {bounds.rpd or false, bounds.tpd or false}
      local used = redis.call('HMGET', day_key(lane, L.day), unpack(DAY_FIELDS))
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
      P.turn = tonumber(redis.call('HGET', lane_key(name), 'turn') or '0')  -- start of the last turn: fair, as v is
      P.kept.turn, L.parents[i] = P.turn, P
    end
  else
    L.parents, L.names = nil, nil
  end
  return L
end
-- writes what scripts change (levels, counters, gate), never the set-points
local function save(L)
  local args = {'ts', int(math.max(now, L.was or 0)), 'seq', int(L.seq)}
  local n = #args
  local function put(name, value) args[n + 1], args[n + 2], n = name, value, n + 2 end
  if L.v ~= L.kept.v or not L.was then put('v', int(L.v)) end
  if L.gate ~= L.kept.gate or not L.was then put('gate', int(L.gate)) end
  for i = 1, N do
    if L.p[i] then
      local over = math.max(0, L.l[i] - L.d[i])
      put('l' .. i, real(L.l[i] - over))
      if over ~= L.o[i] then put('o' .. i, real(over)) end
    end
    if L.c[i] ~= L.kept[i] then put('c' .. i, real(L.c[i])) end
  end
  if L.turn and L.turn ~= L.kept.turn then put('turn', int(L.turn)) end
  redis.call('HSET', lane_key(L.name), unpack(args))
  if L.counted then
    local k = day_key(L.name, L.day)
    if redis.call('HSET', k, 'requests', real(L.used[1]), 'tokens', real(L.used[2])) > 0 then
      redis.call('EXPIRE', k, DAY_TTL_S)
    end
  end
  if L.parents then
    for _, P in ipairs(L.parents) do save(P) end
  end
  if not L.was or math.floor(L.was / HOUR_US) ~= math.floor(now / HOUR_US) then
    local left = redis.call('TTL', lane_key(L.name))
    if left < LANE_TTL_S then redis.call('EXPIRE', lane_key(L.name), LANE_TTL_S) end
    redis.call('ZADD', key('lanes'), int(now), L.name)
  end
end
-- A lane that is not there yet gets fields and values from ARGV[from] on -> whether it was not there.
local function make(lane, from)
  if redis.call('HSETNX', lane_key(lane), 'schema', SCHEMA) == 0 then return false end
  for i = from, #ARGV - 1, 2 do                        -- what a person has set before stays
    if ARGV[i + 1] ~= '' then redis.call('HSETNX', lane_key(lane), ARGV[i], ARGV[i + 1]) end
  end
  redis.call('SADD', key('seen'), lane)                -- what is not known of it changes with time alone
  return true
end
-- µs until every dimension admits the cost (0: now; nil: closed until set-points change)
local function admits_in(L, cost)
  local wait = math.max(0, L.gate - now)
  for i = 1, N do
    local pace = L.p[i]
    if pace then
      if pace <= 0 then return nil end
      local need = math.min(cost[i], L.d[i] - L.g[i]) + L.g[i]
      if L.l[i] + 1e-9 < need then wait = math.max(wait, math.ceil((need - L.l[i]) / pace * 1e6)) end
    end
  end
  for i = 1, L.quota and 2 or 0 do                      -- one larger than the quota goes when none of it is used
    local quota = L.quota[i]
    if quota and L.used[i] + math.min(cost[i], quota) > quota + 1e-9 then
      wait = math.max(wait, (L.day + 1) * DAY_US - now)
    end
  end
  return wait
end
-- by: +1 spent, -1 given back; at: when it was spent, µs
local function use_quota(L, cost, by, at)
  if math.floor(at / DAY_US) ~= L.day then return end  -- yesterday's quota is nobody's any more
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
  if L.width > 0 and L.gap > 0 then                    -- ± 20 %, by the golden section of the number: lanes fall out of step
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

-- ── the pump's plan ──────────────────────────────────────────────────────────────────────────────────────────────
local function plan(at)                                -- wake the pump when `at` is before the end of its sleep
  local sleep = tonumber(redis.call('HGET', PUMP, 'sleep') or '1e18')
  if at < sleep then
    redis.call('HSET', PUMP, 'sleep', int(at))
    redis.call('PUBLISH', key('wake'), int(at))
  end
end
local function note(lane, at)                          -- the pump has to look at `lane` at `at` (nil: it need not)
  if not at then redis.call('ZREM', NEXT, lane) return end
  redis.call('ZADD', NEXT, int(at), lane)
  plan(at)
end
-- Lanes that wait for a parent stand in its row, and the pump looks at the row: `next` holds it under the parent's name
-- behind a newline, which no lane's name has.
local function row_of(parent) return '\n' .. parent end
function wake(parent)
  if redis.call('EXISTS', turns_key(parent)) == 1 then note(row_of(parent), now) end
end
local function lease_us()
  memo[0] = memo[0] or tonumber(redis.call('HGET', PUMP, 'lease') or '30e6')
  return memo[0]
end

-- ── suspects ─────────────────────────────────────────────────────────────────────────────────────────────────────
-- Calls that ran when their worker died: one of them killed it. Each is a suspect until it ends well, and no two are out
-- at once (a sixteenth of them, where there are more than that), so that the one that kills again takes no other suspect
-- along. Those that must wait for their turn do so as for a time.
local suspect = {}                                     -- Lua takes 200 local names
function suspect.mark(ref, out)                        -- it is one; out: 1, it waits: 0
  redis.call('ZADD', SUSPECTS, out, ref)
  redis.call('EXPIRE', SUSPECTS, LANE_TTL_S)
end
function suspect.may_go()                              -- whether a suspect may leave its lane now
  local most = math.max(1, math.ceil(redis.call('ZCARD', SUSPECTS) / PART))
  return redis.call('ZCOUNT', SUSPECTS, 1, 1) < most
end
function suspect.wake_next()                           -- one is out no more: one that waits need not ask later
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', SUSPECTS, 0, 0, 'LIMIT', 0, PART)) do
    local r = record(ref)
    if r and redis.call('ZADD', due_key(r[LANE], r[QUEUE]), 'XX', 'CH', int(now), ref) == 1 then
      note(r[LANE], now)
      return
    end
  end
end
function suspect.back(ref)                             -- out no more: its worker is gone, or its turn is over
  if redis.call('ZADD', SUSPECTS, 'XX', 'CH', 0, ref) == 1 then suspect.wake_next() end
end
function suspect.clear(ref, r)
  if r[LOST] > 0 and redis.call('ZREM', SUSPECTS, ref) == 1 then suspect.wake_next() end
end

-- ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────
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
    redis.call('SREM', onqueue_key(r[QUEUE]), tag)
    set_begun(tag, r)
    if r[LOST] > 0 then suspect.back(ref) end
    note(r[LANE], now)                                 -- one that had not begun may have kept its lane full
  end
end
local function take_back(tag)
  if redis.call('SREM', ASIDE, tag) == 1 then
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
  if h[4] then memo[0] = tonumber(h[4]) end
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
local function living() return redis.call('ZCARD', LEDGER) - redis.call('SCARD', ASIDE) end
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
-- how many more the lane itself may have out; how many it has; and what it waits for when it is full: that one of its
-- calls begins, or ends
local function own_room(L)
  local k = out_key(L.name)
  local out, most, event = redis.call('ZCARD', k), 1e9, 'ends'
  busy[L.name] = out > 0
  if not L.unlimited or L.parents then                 -- when workers stall, what was released must not start as a burst
    most = 1 + math.max(1, ahead(L)) - redis.call('ZCOUNT', k, 0, 0)
    if most <= 0 then event = 'begins' end
  end
  if L.width > 0 then most = math.min(most, L.width - out) end
  if L.cap > 0 then most = math.min(most, L.cap - out) end
  return most, out, event
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
  if waiting > 0 and redis.call('ZSCORE', NEXT, L.name) then waiting = waiting - 1 end
  return waiting > 0 and free or free + math.min(here, SUPPLY)
end

-- ── from waiting to ready ────────────────────────────────────────────────────────────────────────────────────────
-- The tags that a second of the lane's service is worth at its pace now. Service is counted in calls, or in thousands of
-- tokens where these are bound, and not in seconds: a place outlasts the pace at which it was given.
local function speed(L)
  for i = 2, N + 1 do
    local d = (i - 1) % N + 1                          -- tokens of all kinds first, then requests
    if L.p[d] and L.p[d] > 0 then return TAGS * L.p[d] / WORTH[d] end
  end
  for i = 1, L.parents and #L.parents or 0 do
    local by = speed(L.parents[i])
    if by then return by end
  end
end
-- s of service that a call takes: its dearest dimension, in the lane and in its parents
local function service_s(L, cost)
  local s = 0
  for i = 1, N do
    if L.p[i] and L.p[i] > 0 then s = math.max(s, cost[i] / L.p[i]) end
  end
  for i = 1, L.parents and #L.parents or 0 do s = math.max(s, service_s(L.parents[i], cost)) end
  return s
end
local function service(L, cost)                        -- the same in tags
  local by = speed(L)
  return math.max(1, by and service_s(L, cost) * by or cost[1] * TAGS)
end
local function band(class) return BANDS[class] or BANDS.normal end
-- start-time fair queueing (Goyal et al. 1996): the place of a call that arrives in its lane. A class has tags of its own,
-- or an urgent call would wait behind all that its tenant has waiting.
local function place(L, r)
  local k, who = key('tenants:') .. L.name, r[CLASS] .. ':' .. r[TENANT]
  redis.call('ZREMRANGEBYSCORE', k, '-inf', int(L.v))  -- says no more than v does
  local start = math.max(L.v, tonumber(redis.call('ZSCORE', k, who) or '0')) % BAND
  local new = redis.call('ZADD', k, int(start + math.max(1, service(L, r[COST]) / r[WEIGHT])), who)
  if new == 1 then redis.call('EXPIRE', k, TENANT_TTL_S) end
  r[SCORE] = start + band(r[CLASS])
end
-- A call that waits for its turn, or for another's, is found again when its lane degrades; followers first, so that none
-- of them has to take the place of a leader that goes.
local function degradable(ref, r, place)
  if not r[DEGRADES] then return end
  local k, ttl_s = degradable_key(r[LANE]), ttl_of(r)
  redis.call('ZADD', k, place, ref)
  if redis.call('TTL', k) < ttl_s then redis.call('EXPIRE', k, ttl_s) end
end
local degrade                                          -- what is done with them; below, since it needs claims
local function wait(ref, r, behind)
  degradable(ref, r, 1)
  redis.call('ZADD', wait_key(r[LANE], r[QUEUE]), int(r[SCORE] + (behind or 0)), ref)
  redis.call('SADD', queues_key(r[LANE]), r[QUEUE])
end
local function wait_until(due, ref, r)
  redis.call('ZADD', due_key(r[LANE], r[QUEUE]), int(due), ref)
  redis.call('SADD', queues_key(r[LANE]), r[QUEUE])
end
local function waits(ref, r)                            -- for its turn, its time, another's answer, or to be handed its own
  return redis.call('ZSCORE', wait_key(r[LANE], r[QUEUE]), ref) or redis.call('ZSCORE', due_key(r[LANE], r[QUEUE]), ref)
    or redis.call('ZSCORE', ANSWERED, ref) or (r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref))
end
local function unwait(ref, r)                          -- 1 when it waited
  return redis.call('ZREM', wait_key(r[LANE], r[QUEUE]), ref) + redis.call('ZREM', due_key(r[LANE], r[QUEUE]), ref)
    + redis.call('ZREM', ANSWERED, ref) + (r[CLAIM] and redis.call('ZREM', followers_key(r[CLAIM]), ref) or 0)
end
-- calls whose time has come go to their place, retries to theirs behind those that were not tried -> when the next one's
-- comes
local function ripen(L, queues)
  local at
  for _, q in ipairs(queues) do
    local k = due_key(L.name, q)
    local e = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
    if e[2] and tonumber(e[2]) <= now then
      for _, ref in ipairs(redis.call('ZRANGEBYSCORE', k, '-inf', int(now), 'LIMIT', 0, 200)) do
        redis.call('ZREM', k, ref)
        local r = record(ref)
        if r then
          -- A call for later arrives now: had it its place since it was accepted, a thousand of them would put the
          -- tenant's calls of today behind everybody's.
          if r[SCORE] < 0 then place(L, r); keep(ref, r) end
          -- A suspect that waited for its turn is no retry now: it comes back to its own place.
          wait(ref, r, r[ATTEMPTS] > 0 and r[LOST] == 0 and BEHIND or 0)
        end
      end
      e = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
    end
    if e[2] then at = math.min(at or 1e18, tonumber(e[2])) end
  end
  return at
end
-- what the workers read: the stored text with the tag in its place. The JSON is never decoded ({} would become []).
local function text_of(ref, r, tag, message)
  message = message or redis.call('HGET', call_key(ref), 'm')
  local _, b = string.find(message, '"delivery_tag": "@"', 1, true)
  message = string.sub(message, 1, b - 3) .. cjson.encode(tag) .. string.sub(message, b + 1)
  if r[RESTORED] == 1 then
    local x, y = string.find(message, '"redelivered": false', 1, true)
    if x then message = string.sub(message, 1, x - 1) .. '"redelivered": true' .. string.sub(message, y + 1) end
  end
  return message
end
-- ── parents ──────────────────────────────────────────────────────────────────────────────────────────────────────
-- A call goes when its lane and each of its parents admit it. A lane that waits for a parent stands in its row, at the
-- start of its next turn (start-time fair queueing again, all lanes alike), and takes from it when it is the first there.
local function start_of(P, lane)
  return tonumber(redis.call('ZSCORE', turns_key(P.name), lane) or '')
    or math.max(P.turn, tonumber(redis.call('ZSCORE', shares_key(P.name), lane) or '0'))
end
local function first_there(P, lane)
  local e = redis.call('ZRANGE', turns_key(P.name), 0, 0, 'WITHSCORES')
  return not e[1] or e[1] == lane or start_of(P, lane) < tonumber(e[2])
end
local function crowded(P)                              -- as many are out as may be
  if P.cap == 0 and P.width == 0 then return false end
  local out = redis.call('ZCARD', out_key(P.name))
  return (P.cap > 0 and out >= P.cap) or (P.width > 0 and out >= P.width)
end
local function take_turns(L, cost)
  for _, P in ipairs(L.parents) do
    local start, k = start_of(P, L.name), shares_key(P.name)
    P.turn = math.max(P.turn, start)
    redis.call('ZREMRANGEBYSCORE', k, '-inf', int(P.turn))  -- says no more than `turn` does
    if redis.call('ZADD', k, int(start + service(P, cost)), L.name) == 1 then redis.call('EXPIRE', k, TENANT_TTL_S) end
    redis.call('ZREM', turns_key(P.name), L.name)      -- its next turn has another start
  end
end
local function stand(P, lane, at)                      -- in the parent's row, which is looked at by then
  redis.call('ZADD', turns_key(P.name), 'NX', int(start_of(P, lane)), lane)
  local planned = redis.call('ZSCORE', NEXT, row_of(P.name))
  if at and (not planned or tonumber(planned) > at) then note(row_of(P.name), at) end
end
-- Whether a parent bars the lane's next call; if so, the lane stands in the row of each that does. The slowest is kept for
-- it when the others come soon, within the time of the call's service there: else it might never find all of them at once.
-- served: the parent whose turn it is to be asked; rows: where it stands
local function barred(L, cost, served, rows)
  local waits, any = {}, false                         -- µs; inf: for an event; 'turn': for others before it
  for i, P in ipairs(L.parents) do
    waits[i] = crowded(P) and math.huge or admits_in(P, cost) or math.huge
    if P.name ~= served and waits[i] < math.huge and not first_there(P, L.name) then waits[i] = 'turn' end
    any = any or waits[i] ~= 0
  end
  if not any then return false end
  local slowest, longest_s = 0, -1
  for i, P in ipairs(L.parents) do
    local s = service_s(P, cost)
    if s > longest_s then slowest, longest_s = i, s end
  end
  for i, P in ipairs(L.parents) do
    local elsewhere = 0
    for j, wait_us in ipairs(waits) do
      if j ~= i then elsewhere = math.max(elsewhere, wait_us == 'turn' and math.huge or wait_us) end
    end
    if waits[i] == 'turn' then
      stand(P, L.name, not redis.call('ZSCORE', NEXT, row_of(P.name)) and now)
      rows[P.name] = true
    elseif waits[i] > 0 then
      stand(P, L.name, waits[i] < math.huge and now + waits[i])
      rows[P.name] = true
    elseif i == slowest and elsewhere <= longest_s * 1e6 then
      stand(P, L.name, now + elsewhere)
      rows[P.name] = true
    end
  end
  return true
end
local function clear(L, cost)                          -- no parent bars a call, and nobody waits for one
  for i = 1, L.parents and #L.parents or 0 do
    local P = L.parents[i]
    if redis.call('EXISTS', turns_key(P.name)) == 1 or crowded(P) or admits_in(P, cost) ~= 0 then return false end
  end
  return true
end
-- into the ready list and the ledger in one step; message: as for `keep`
local function give(ref, r, ttl_us, message)
  r[RELEASE] = count('released')
  r[BORN] = math.min(r[BORN], r[RELEASE] - 1)
  local tag = ref .. '.' .. int(r[RELEASE])
  redis.call('ZADD', LEDGER, int(now + ttl_us), tag)
  redis.call('ZADD', out_key(r[LANE]), 0, tag)         -- 0: not begun, 1: begun
  for i = 1, r[PARENTS] and #r[PARENTS] or 0 do
    redis.call('ZADD', out_key(r[PARENTS][i]), 0, tag)
    redis.call('SADD', key('busy'), r[PARENTS][i])
  end
  redis.call('SADD', onqueue_key(r[QUEUE]), tag)
  if not busy[r[LANE]] then redis.call('SADD', key('busy'), r[LANE]) end  -- what is out of is in these; the sweep drops
  if not onqueue[r[QUEUE]] then redis.call('SADD', key('onqueues'), r[QUEUE]) end  -- what is no longer
  if r[LOST] > 0 then suspect.mark(ref, 1) end
  keep(ref, r, message)
  redis.call('LPUSH', K .. r[QUEUE], text_of(ref, r, tag, message))
end
-- out of the lane with a permit
local function let_go(L, ref, r, ttl_us, message)
  spend(L, r[COST])
  L.v = math.max(L.v, r[SCORE] - band(r[CLASS]))
  r[PERMIT], r[TICKET] = TAKEN, {L.seq, now, L.c[1], L.c[2], L.c[3], L.c[4]}
  if L.parents then
    r[CLAIM], r[DEGRADES], r[PARENTS] = r[CLAIM] or false, r[DEGRADES] or false, L.names  -- no holes
    take_turns(L, r[COST])
  end
  give(ref, r, ttl_us, message)
end

-- The first of the lane's calls on a queue, and its tag: the start of its turn, plus what its class has to wait longer at
-- the pace of now. So classes age with what the lane does, however slow that has become. Retries come after all others;
-- retries: the first of them alone.
local function head_of(L, queue, retries)
  local k = wait_key(L.name, queue)
  local e
  if retries then
    e = redis.call('ZRANGEBYSCORE', k, int(BEHIND), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  else
    e = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
  end
  if not e[1] then return nil end
  if not L.speed then                                  -- without a pace: about a call a second and slot
    L.speed = speed(L) or TAGS * math.max(1, (slots(queue)))
    if L.width > 0 and L.gap > 0 then L.speed = math.min(L.speed, TAGS * 1e6 / L.gap) end
  end
  L.lowest = L.lowest or {}                            -- by queue: the last band that waits; a release only takes calls away
  local lowest = L.lowest[queue]
  if not lowest then
    lowest = math.floor(tonumber(redis.call('ZRANGE', k, -1, -1, 'WITHSCORES')[2]) / BAND)
    L.lowest[queue] = lowest
  end
  local behind = tonumber(e[2]) >= BEHIND and BEHIND or 0
  lowest = math.min(lowest, (behind > 0 and 2 or 1) * RETRIES - 1)
  local ref, first
  while true do
    local score = tonumber(e[2])
    local class = math.floor(score / BAND)
    if class > lowest then return ref, first end       -- a retry behind the others
    local tag = behind + math.min(BEHIND - 1, score - class * BAND + AGES_S[class % RETRIES] * L.speed)
    if not first or tag < first then ref, first = e[1], tag end
    if class >= lowest then return ref, first end
    e = redis.call('ZRANGEBYSCORE', k, int((class + 1) * BAND), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not e[1] then return ref, first end
  end
end
-- the first of the lane's calls among the queues that have room, its queue; whether any call waits at all; and its tag
local function first_of(L, queues, rooms, out, greedy)
  local ref, first, queue
  local waits = false
  for _, q in ipairs(queues) do
    if rooms[q] ~= 'empty' then
      local head, tag = head_of(L, q)
      if not head then
        rooms[q] = 'empty'
        if redis.call('EXISTS', due_key(L.name, q)) == 0 then redis.call('SREM', queues_key(L.name), q) end
      else
        waits = true
        if not rooms[q] then rooms[q] = room(L, q, out, greedy) end
        if rooms[q] > 0 and (not first or tag < first) then ref, first, queue = head, tag, q end
      end
    end
  end
  return ref, queue, waits, first
end
-- ── the budget of retries ────────────────────────────────────────────────────────────────────────────────────────
-- A retry whose backoff is over waits behind all that wait otherwise, so that permits which nobody else wants are its own.
-- While others wait it goes before them as long as the lane's budget has room: a tenth of the permits and ten a minute,
-- and never more than ten at once. rb: the budget when the lane had given rs permits, at rt.
local budget = {SHARE = 0.1, PER_US = 10 / 60e6, MOST = 10}
function budget.left(L)
  local h = redis.call('HMGET', lane_key(L.name), 'rb', 'rs', 'rt')
  if not h[1] then return budget.MOST end
  local permits, us = math.max(0, L.seq - tonumber(h[2])), math.max(0, now - tonumber(h[3]))
  return math.min(budget.MOST, tonumber(h[1]) + budget.SHARE * permits + budget.PER_US * us)
end
function budget.pay(L, left)
  redis.call('HSET', lane_key(L.name), 'rb', real(left - 1), 'rs', int(L.seq), 'rt', int(now))
end
-- The first retry on the queues that have room, when the budget lets it go before the others that wait: it, its queue,
-- and the budget. Nothing is looked up for a lane in which no retries wait.
function budget.first(L, queues, rooms)
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
-- the row of a queue: lanes with a permit that found no slot there, in the order in which they are to be asked
local function enrol(L, queue)
  if redis.call('ZSCORE', row_key(queue), L.name) then return end
  redis.call('SADD', HUNGRY, queue)
  redis.call('ZADD', row_key(queue), redis.call('HINCRBY', PUMP, 'row', 1), L.name)
end
local function strike(lane, queue)
  if redis.call('ZREM', row_key(queue), lane) == 1 and redis.call('EXISTS', row_key(queue)) == 0 then
    redis.call('SREM', HUNGRY, queue)
  end
end
-- Release at most `most` calls of a lane -> how many went. A lane in which something waits is left where something wakes
-- it: in `next` (the pump, at that time), in a queue's row (the next free slot), in `full` (one of its own calls begins
-- or ends), in the row of a parent, or closed (new set-points). served: the parent whose turn it is to be asked
local function release(lane, most, greedy, served)
  local L = load(lane)
  local queues = redis.call('SMEMBERS', queues_key(lane))
  local at = ripen(L, queues)
  if DEGRADED[L.mode] and degrade(L) then at = now end
  local own, out, event = own_room(L)
  local moved, rooms, full, closed, lease, rows = 0, {}, false, false, lease_us(), {}
  while true do
    local ref, queue, waits, tag = first_of(L, queues, rooms, out + moved, greedy)
    if moved >= own and waits then full = true break end
    if not ref then break end
    local retry, on, left
    if tag < BEHIND then retry, on, left = budget.first(L, queues, rooms) end
    if retry then ref, queue = retry, on end
    local r = record(ref)
    if not r then
      redis.call('ZREM', wait_key(lane, queue), ref)   -- its record outlived its time
    elseif r[VERSION] > SCHEMA then
      rooms[queue] = 0                                 -- a newer worker's to release
      at = math.min(at or 1e18, now + 1e6)
    elseif r[LOST] > 0 and not suspect.may_go() then
      redis.call('ZREM', wait_key(lane, queue), ref)
      wait_until(now + SUSPECT_US, ref, r)
      at = math.min(at or 1e18, now + SUSPECT_US)
    else
      local wait_us = admits_in(L, r[COST])
      if not wait_us then closed = true break end
      if wait_us > 0 then at = math.min(at or 1e18, now + wait_us) break end
      if moved >= most and not L.parents then at = now break end
      if moved >= most then                            -- its next turn comes when it is the first again
        for _, P in ipairs(L.parents) do
          if not served or P.name == served then       -- who serves a row goes on with it
            stand(P, lane, not served and now)
            rows[P.name] = true
          end
        end
        break
      end
      if L.parents and barred(L, r[COST], served, rows) then break end
      redis.call('ZREM', wait_key(lane, queue), ref)
      let_go(L, ref, r, lease)
      if retry then budget.pay(L, left) end
      moved = moved + 1
      rooms[queue] = rooms[queue] - 1
      if #queues > 1 then rooms = {} end               -- queues share slots: count again
    end
  end
  if moved > 0 then save(L) end
  stood = rows
  for i = 1, L.parents and #L.parents or 0 do           -- whoever waits for something else holds up nobody there
    local P = L.parents[i]
    if not rows[P.name] and redis.call('ZREM', turns_key(P.name), lane) == 1 and P.name ~= served then wake(P.name) end
  end
  if full then
    if moved > 0 then event = select(3, own_room(L)) end
    redis.call('HSET', FULL, lane, event)
  else
    redis.call('HDEL', FULL, lane)
  end
  local anybody = redis.call('EXISTS', HUNGRY) == 1
  for _, q in ipairs(queues) do
    local hungry = false
    if rooms[q] and rooms[q] ~= 'empty' and rooms[q] <= 0 and not full and not closed then
      local head = next(L.p) and (budget.first(L, {q}, {[q] = 1}) or head_of(L, q))
      local r = head and record(head)
      if head and not r then
        redis.call('ZREM', wait_key(lane, q), head)
        at = now
      elseif not r or r[VERSION] <= SCHEMA then
        local wait_us = admits_in(L, r and r[COST] or NOTHING)
        hungry = wait_us == 0
        if wait_us and wait_us > 0 then at = math.min(at or 1e18, now + wait_us) end
      end
    end
    if hungry then enrol(L, q) elseif anybody then strike(lane, q) end
  end
  note(lane, at)
  return moved
end
-- Slots are free: the lanes in the rows get them, each in turn. One that has its share is passed over, unless nobody
-- else can use the slot. O(tries · log waiting).
local function feed(free)
  local given, asked = 0, {}
  for _ = 1, TRIES + free do
    local lane, queue, first
    for _, q in ipairs(redis.call('SMEMBERS', HUNGRY)) do
      local e = redis.call('ZRANGE', row_key(q), 0, 0, 'WITHSCORES')
      if not e[1] then
        redis.call('SREM', HUNGRY, q)
      elseif not first or tonumber(e[2]) < first then
        local _, here = slots(q)
        if here > 0 then lane, queue, first = e[1], q, tonumber(e[2]) end
      end
    end
    if not lane then return end
    local again = asked[lane]
    if again and (redis.call('ZCARD', row_key(queue)) == 1 or vacant(queue) <= 0) then return end
    local n = release(lane, redis.call('ZCARD', row_key(queue)) == 1 and free - given or 1, again)
    given, asked[lane] = given + n, n == 0
    redis.call('ZADD', row_key(queue), 'XX', redis.call('HINCRBY', PUMP, 'row', 1), lane)  -- asked: to the end
    if given >= free or again then return end
  end
end
-- A parent's row: each of the lanes there in its turn, until the parent bars the first. O(released · log waiting).
local function serve(parent, most)
  redis.call('ZREM', NEXT, row_of(parent))
  local moved = 0
  while moved < most do
    local lane = redis.call('ZRANGE', turns_key(parent), 0, 0)[1]
    if not lane then return moved end
    local n = release(lane, 1, false, parent)
    moved = moved + n
    if n == 0 and stood[parent] then return moved end
    if n == 0 then redis.call('ZREM', turns_key(parent), lane) end  -- it waits for something else, or is no child any more
  end
  wake(parent)
  return moved
end
local function look(at, most)                          -- a lane of `next`, or a parent's row
  local parent = string.match(at, '^\n(.*)$')
  if parent then return serve(parent, most) end
  return release(at, most)
end
-- the pump is late (its holder was killed, or its thread starves): whoever is here does its work for one lane
local function overdue()
  local e = redis.call('ZRANGE', NEXT, 0, 0, 'WITHSCORES')
  if e[2] and tonumber(e[2]) < now - 4000 then look(e[1], 20) end
end

-- ── out of the ledger ────────────────────────────────────────────────────────────────────────────────────────────
-- The call is no longer out -> whether it was in the ledger, and whether it had begun. A permit that no start has used
-- goes back, here and nowhere else.
local function leave(tag, r)
  local out = out_key(r[LANE])
  local there = redis.call('ZREM', LEDGER, tag) == 1
  redis.call('ZREM', out, tag)
  redis.call('SREM', onqueue_key(r[QUEUE]), tag)
  redis.call('SREM', ASIDE, tag)
  local parents = r[PARENTS]
  for i = 1, parents and #parents or 0 do redis.call('ZREM', out_key(parents[i]), tag) end
  if not there then return false end
  if r[LOST] > 0 then suspect.back((split(tag))) end
  if r[PERMIT] == TAKEN then
    local L = load(r[LANE], parents or {})
    refund(L, r[COST], r[TICKET][2])
    save(L)
  end
  for i = 1, parents and #parents or 0 do wake(parents[i]) end
  r[PARENTS] = nil
  local begun = r[PERMIT] == USED
  r[PERMIT] = NONE
  return true, begun
end
-- n of the lane's calls are out no more (begun: all of them had begun): the lane may have waited for that
local function after(lane, n, begun)
  local awaits = redis.call('HGET', FULL, lane)
  if awaits == 'ends' or (awaits and not begun) then release(lane, n) end
end
-- ── claims: one call asks for all that are the same ──────────────────────────────────────────────────────────────
-- The claim of a fingerprint names its leader; the others follow it, outside the lane. Whoever the claim does not name can
-- neither settle it nor pass it on.
local function as_class(r, class) return r[SCORE] - band(r[CLASS]) + band(class) end  -- its place, were it of that class
local function lead(ref, r) redis.call('SET', claim_key(r[CLAIM]), ref, 'EX', math.max(1, ttl_of(r))) end
local function follow(ref, r)
  local k, ttl_s = followers_key(r[CLAIM]), ttl_of(r)
  redis.call('ZADD', k, int(now), ref)
  if redis.call('TTL', k) < ttl_s then redis.call('EXPIRE', k, ttl_s) end
  degradable(ref, r, 0)
end
-- Whom the claim names, when it is worth following: it is there, and waits for a worker that is.
local function leader_for(fp, queue)
  local ref = redis.call('GET', claim_key(fp))
  local r = ref and record(ref)
  if not r then return nil end
  if r[QUEUE] ~= queue and select(2, slots(r[QUEUE])) == 0 then return nil end
  return ref, r
end
-- The most urgent of those that are the same decides their place.
local function hurry(ref, r, class)
  if r[VERSION] > SCHEMA or r[SCORE] < 0 or band(class) >= band(r[CLASS]) then return end
  r[SCORE] = as_class(r, class)
  r[CLASS] = class
  keep(ref, r)
  local k = wait_key(r[LANE], r[QUEUE])
  local at = tonumber(redis.call('ZSCORE', k, ref) or '')
  if at then
    redis.call('ZADD', k, 'XX', int(r[SCORE] + (at >= BEHIND and BEHIND or 0)), ref)  -- a retry stays one
    note(r[LANE], now)
  end
end
-- A call has its answer without a request of its own: the pump gives it to a worker, without a permit, as it does with
-- those whose deadline has passed. Its links, its chord and its result are Celery's to see to.
local function answered(ref, r, answer)
  redis.call('SET', key('settled:') .. ref, answer, 'NX', 'EX', math.max(1, ttl_of(r)))
  redis.call('ZADD', ANSWERED, int(now), ref)
  redis.call('ZADD', EXPIRY, int(now), ref)
  plan(now)
end
-- The leader leaves without an answer: its first follower takes its place in the lane, and the others follow that one.
local function succeed(ref, r)
  local fp = r[CLAIM]
  if redis.call('GET', claim_key(fp)) ~= ref then return end
  redis.call('DEL', claim_key(fp))
  while true do
    local heir = redis.call('ZPOPMIN', followers_key(fp))[1]
    if not heir then return end
    local h = record(heir)
    if h then
      lead(heir, h)
      if r[SCORE] >= 0 then h[SCORE] = as_class(r, h[CLASS]) else place(load(h[LANE]), h) end
      h[SINCE] = now
      keep(heir, h)
      wait(heir, h)
      note(h[LANE], now)
      return
    end
  end
end
local function uncache(fp)                             -- 1 when it was there
  redis.call('ZREM', CACHE_USED, fp)
  redis.call('ZREM', CACHE_ENDS, fp)
  local size = redis.call('HGET', CACHE_SIZES, fp)
  if size then
    redis.call('HDEL', CACHE_SIZES, fp)
    redis.call('HINCRBY', CACHE_SIZES, 'all', -tonumber(size))
  end
  return redis.call('DEL', cache_key(fp))
end
-- An answer is kept, past its time too where it may then be given in an emergency; what has ended goes, then what was used
-- longest ago, until it fits. O(gone · log entries).
-- A claim, as Claim.packed writes it. STALE_MS: absent in claims of an older version.
local ASKED = {FP = 1, TTL_MS = 2, JOIN = 3, AT_ONCE = 4, AGAIN = 5, ENTRIES = 6, BYTES = 7, CONTEXT = 8, TAGS = 9, FUNC = 10,
  STALE_MS = 11}
local function kept_ms(claim) return claim[ASKED.TTL_MS] + (claim[ASKED.STALE_MS] or 0) end
local ENTRY_BYTES = 500                                -- what an entry takes beside its answer, about
local function cache(claim, answer)
  local fp, size = claim[ASKED.FP], #answer + ENTRY_BYTES
  if redis.call('HEXISTS', CACHE_SIZES, fp) == 1 then uncache(fp) end
  if size > claim[ASKED.BYTES] or claim[ASKED.ENTRIES] < 1 then return end
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', CACHE_ENDS, '-inf', int(now), 'LIMIT', 0, 100)) do uncache(old) end
  while redis.call('ZCARD', CACHE_USED) >= claim[ASKED.ENTRIES]
    or tonumber(redis.call('HGET', CACHE_SIZES, 'all') or '0') + size > claim[ASKED.BYTES] do
    local old = redis.call('ZRANGE', CACHE_USED, 0, 0)[1]
    if not old then redis.call('DEL', CACHE_SIZES) break end  -- forgotten beside us: the sum is of nothing
    uncache(old)
    count('cache_evicted')
  end
  local ends = now + claim[ASKED.TTL_MS] * 1000
  redis.call('HSET', cache_key(fp), 'answer', answer, 'context', claim[ASKED.CONTEXT], 'tags', claim[ASKED.TAGS],
    'func', claim[ASKED.FUNC], 'size', size, 'ends', int(ends))
  redis.call('PEXPIRE', cache_key(fp), int(kept_ms(claim)))
  redis.call('ZADD', CACHE_USED, int(now), fp)
  redis.call('ZADD', CACHE_ENDS, int(now + kept_ms(claim) * 1000), fp)
  redis.call('HSET', CACHE_SIZES, fp, size)
  redis.call('HINCRBY', CACHE_SIZES, 'all', size)
end
-- The kept answer for a claim, which counts as a use; one past its time only while the lane is degraded.
local function cached(claim, mode)
  if kept_ms(claim) <= 0 then return nil end
  local fp = claim[ASKED.FP]
  local h = redis.call('HMGET', cache_key(fp), 'answer', 'ends')
  if not h[1] or not h[2] then return nil end
  local ends = tonumber(h[2])
  local fresh = claim[ASKED.TTL_MS] > 0 and now < ends
  if not fresh and not (DEGRADED[mode] and now < ends + (claim[ASKED.STALE_MS] or 0) * 1000) then return nil end
  redis.call('ZADD', CACHE_USED, 'XX', int(now), fp)
  count(fresh and 'cache_hits' or 'cache_stale')
  return h[1]
end
-- The followers of a claim go each its own way, at once: they arrive in their lane now, and share nothing any more.
local function disband(fp, lane)
  local L = load(lane)                                 -- theirs too: it is part of the fingerprint
  for _, follower in ipairs(redis.call('ZRANGE', followers_key(fp), 0, -1)) do
    local f = record(follower)
    if f then
      f[CLAIM], f[SINCE] = false, now
      place(L, f)
      keep(follower, f)
      wait(follower, f)
    end
  end
  note(lane, now)
end
-- A call has its outcome ('value'; 'error'; 'passed': it asks again, or never will; 'alone': nobody else can have it). Its
-- answer is kept; the followers of its claim get the outcome, or are let go. O(followers · log).
local function share(ref, r, kind, answer)
  local packed = kind == 'value' and redis.call('HGET', call_key(ref), 'c')
  local claim = packed and cmsgpack.unpack(packed)
  if claim and kept_ms(claim) > 0 and not pcall(cache, claim, answer) then count('uncached') end
  if kind == 'passed' or redis.call('GET', claim_key(r[CLAIM])) ~= ref then return end
  if kind == 'alone' then
    disband(r[CLAIM], r[LANE])
  else
    for _, follower in ipairs(redis.call('ZRANGE', followers_key(r[CLAIM]), 0, -1)) do
      local f = record(follower)
      if f then answered(follower, f, answer) end
    end
  end
  redis.call('DEL', claim_key(r[CLAIM]), followers_key(r[CLAIM]))
end
local function shedding(L)                             -- what a call gets that is shed, as flow/settle.py reads it
  count('shed')
  return cjson.encode({error = {'LaneShedding', {L.name, L.mode}}})
end
-- Waiting calls of a lane that is in EMERGENCY or HALT get a kept answer, or else an error, where they said that they may;
-- they leave the lane without a permit. What waits for a time does so when the time has come. At most DEGRADED_AT_ONCE.
-- returns  whether there were any: there may be more, and heirs have come into the lane
function degrade(L)
  local k, any = degradable_key(L.name), false
  for _, ref in ipairs(redis.call('ZRANGE', k, 0, DEGRADED_AT_ONCE - 1)) do
    local r = record(ref)
    if not r or r[VERSION] <= SCHEMA then              -- else a newer worker's
      redis.call('ZREM', k, ref)                       -- it comes again when it waits again
      any = true
    end
    local waiting = r and r[VERSION] <= SCHEMA and (redis.call('ZSCORE', wait_key(r[LANE], r[QUEUE]), ref)
      or (r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref)))
    if waiting and redis.call('EXISTS', key('settled:') .. ref) == 0 then
      local packed = r[CLAIM] and r[DEGRADES] % 2 == STALE and redis.call('HGET', call_key(ref), 'c')
      local answer = packed and cached(cmsgpack.unpack(packed), L.mode)
      if not answer and r[DEGRADES] >= SHED then answer = shedding(L) end
      if answer then
        unwait(ref, r)
        if r[CLAIM] then succeed(ref, r) end
        answered(ref, r, answer)
      end
    end
  end
  return any
end
local function forget(ref, r)
  if r[CLAIM] then succeed(ref, r) end
  if r[DEGRADES] then redis.call('ZREM', degradable_key(r[LANE]), ref) end
  suspect.clear(ref, r)
  redis.call('DEL', call_key(ref), key('payload:') .. ref, key('settled:') .. ref)
  redis.call('ZREM', EXPIRY, ref)
  -- a publisher that lost our reply may send the same once more
  redis.call('SET', key('done:') .. ref, r[PUB], 'EX', PUBLISHED_TTL_S)
end
-- Back into the lane: to its own place, or to its time. `expiry` says when it is delivered without a permit: at its
-- deadline, or now when it has its answer. The caller releases.
local function go_back(ref, tag, r, due)
  leave(tag, r)
  r[SINCE] = now
  if due > now then
    wait_until(due, ref, r)
  else
    if r[SCORE] < 0 then place(load(r[LANE]), r) end   -- expired before its time had come, and its worker died
    wait(ref, r)
  end
  keep(ref, r)
  local settled = redis.call('EXISTS', key('settled:') .. ref) == 1
  redis.call('ZADD', EXPIRY, int(settled and now or r[DEADLINE]), ref)
end
-- Takes a message that nobody has read out of the ready list -> whether it lay there. The list may be a stock producer's
-- and a million long, so only its ends are searched; what is not found is delivered one day, and begin calls it stale.
local function unready(ref, r, tag)
  local list, text = K .. r[QUEUE], text_of(ref, r, tag)
  if redis.call('LPOS', list, text, 'MAXLEN', 5000) then return redis.call('LREM', list, 1, text) == 1 end
  if redis.call('LPOS', list, text, 'RANK', -1, 'MAXLEN', 5000) then return redis.call('LREM', list, -1, text) == 1 end
  return false
end
-- A worker died (lost: while it ran what had begun), or the message lay unread -> the lane when the call went back. The
-- caller releases.
local function restore(tag, lost)
  local ref = split(tag)
  local r = record(ref)
  if not r then redis.call('ZREM', LEDGER, tag) return end  -- its record outlived its time; the audit does the rest
  if r[VERSION] > SCHEMA then
    redis.call('ZADD', LEDGER, 'XX', int(now + lease_us()), tag)  -- a newer worker's to restore
    return
  end
  if r[PERMIT] == USED then
    if lost then r[LOST] = r[LOST] + 1 end
    r[RESTORED] = 1
  elseif not unready(ref, r, tag) then
    r[RESTORED] = 1
  end
  go_back(ref, tag, r, 0)
  if r[LOST] > 0 then suspect.mark(ref, 0) end
  return r[LANE]
end
-- What lies ready and unread goes back: on queues that nobody serves any more, or on all. O(out · ready).
local function recall(everywhere)
  for _, lane in ipairs(redis.call('SMEMBERS', key('busy'))) do
    for _, tag in ipairs(redis.call('ZRANGEBYSCORE', out_key(lane), 0, 0)) do
      local ref = split(tag)
      local r = record(ref)
      if r and r[VERSION] <= SCHEMA then
        local _, here = slots(r[QUEUE])
        if (everywhere or here == 0) and unready(ref, r, tag) then
          go_back(ref, tag, r, 0)
          note(r[LANE], now)
        end
      end
    end
  end
end

-- ── what is learned from an attempt ──────────────────────────────────────────────────────────────────────────────
-- verdict: 'good' answered, 'plain' answered and no header told anything, 'refused' 429 ('refused.2': in the second dimension),
-- 'sick', 'quota' nothing is left to spend, 'barred' the key was not accepted, 'other'. seen: the tuner's observation, packed by
-- Python, or ''
-- r: the record of the call whose permit it was; nil: of none
-- returns  true when it is heeded in full: of a lane that is well, the tuner need only know how many plain answers it had
local function heed(lane, told, gate_us, r)
  local k = lane_key(lane)
  local verdict, dimension = string.match(told, '^(%a+)%.?(%d*)$')
  dimension = tonumber(dimension)
  if verdict == 'good' or verdict == 'plain' then
    local h = redis.call('HMGET', k, 'sick', 'refusals', 'mode', 'width')
    local row = (h[1] or '0') ~= '0'
    if row or (h[2] or '0') ~= '0' then redis.call('HSET', k, 'sick', 0, 'refusals', 0) end
    if verdict == 'plain' and not row and (h[3] or 'NORMAL') == 'NORMAL' and (h[4] or '0') == '0' then
      if redis.call('HINCRBY', k, 'goods', 1) == 1 then redis.call('SADD', key('seen'), lane) end
      return true
    end
  elseif verdict == 'sick' then
    local row = (tonumber(redis.call('HGET', k, 'sick') or '0') or 0) + 1
    redis.call('HSET', k, 'sick', int(row))
    if row >= SICK_ROW then redis.call('PUBLISH', key('tune'), lane) end
  elseif verdict == 'refused' then
    -- The refusal is the lane's own: its parents and the day get back what the call took.
    local L, cost = load(lane, r and r[PARENTS]), r and r[COST] or NOTHING
    if r then refund_beside(L, cost, r[TICKET][2]) end
    for i = 1, N do
      if cost[i] > 0 then redis.call('HINCRBYFLOAT', k, 'x' .. i, cost[i]) end
      if L.p[i] then
        L.l[i] = math.max(L.l[i], math.min(L.d[i], L.l[i] + cost[i]))
        -- After the gate: with headers, this call alone, and then what they say; without, what the pause has earned.
        local least = L.told and math.min(cost[i], L.d[i] - L.g[i]) + L.g[i] or 0
        if not dimension or dimension == i then L.l[i] = math.min(L.l[i], least) end
      end
    end
    if gate_us <= 0 then                               -- no Retry-After: 0.05·2^k s for the k-th in a row, at most 15 s
      local row = tonumber(redis.call('HGET', k, 'refusals') or '0') or 0
      if L.gate <= now then row = row + 1; redis.call('HSET', k, 'refusals', int(row)) end
      gate_us = math.min(15e6, 50000 * 2 ^ math.max(0, row - 1)) * (0.5 + (now % 1000) / 2000)
    end
    L.gate = math.max(L.gate, now + math.min(gate_us, DAY_US))
    save(L)
    redis.call('PUBLISH', key('tune'), lane)
  elseif verdict == 'quota' and redis.call('HGET', k, 'escalates') ~= '0' then  -- what is released and has not begun goes back
    local L = bucket(lane)
    L.gate = math.max(L.gate, now + HALT_US)
    save(L)
    redis.call('PUBLISH', key('tune'), lane)
  end
end
local function tell(lane, seen)
  if seen ~= '' then
    redis.call('RPUSH', key('seen:') .. lane, seen)
    redis.call('LTRIM', key('seen:') .. lane, -2000, -1)
    redis.call('EXPIRE', key('seen:') .. lane, 3600)
  end
  redis.call('SADD', key('seen'), lane)
end
local function book(outbox)
  if outbox ~= '' then redis.call('XADD', key('outbox'), 'MAXLEN', '~', 5000000, '*', 'a', outbox) end
end
-- How functions fare, by half minutes, for the bad-record rule of policy/retry.py: failed and answered of the lane, f:NAME
-- and a:NAME of its functions. tried: as tally.tried packs it. Names beyond the most count for the lane alone.
local fared = {SLOT_US = 30e6, SLOTS = 10, TTL_S = 330, MOST = 2000}
function fared.key(lane, slot) return key('fared:') .. int(slot) .. ':' .. lane end
function fared.fare(lane, tried)
  local k, t = fared.key(lane, math.floor(now / fared.SLOT_US)), cmsgpack.unpack(tried)
  local function add(sum, field, n)
    redis.call('HINCRBY', k, sum, n)
    if redis.call('HLEN', k) < fared.MOST or redis.call('HEXISTS', k, field) == 1 then
      redis.call('HINCRBY', k, field, n)
    end
  end
  add('failed', 'f:' .. t[1], 1)
  for name, n in pairs(t[2]) do add('answered', 'a:' .. name, n) end
  redis.call('EXPIRE', k, fared.TTL_S)
end
-- The outcome of an attempt is recorded, heeded and told. The parts do not hang together, and what the caller does next
-- (keep the answer, give the call back) does not hang on them: one that fails is counted.
local function learn(lane, verdict, seen, outbox, gate_us, r, tried)
  if not pcall(book, outbox) then count('unrecorded') end
  if tried and tried ~= '' and not pcall(fared.fare, lane, tried) then count('unheeded') end
  local heeded, in_full = pcall(heed, lane, verdict, gate_us or 0, r)
  if not heeded then count('unheeded') end
  if not (heeded and in_full) and not pcall(tell, lane, seen) then count('untold') end
end
-- ── tokens that were reserved and not used ───────────────────────────────────────────────────────────────────────
-- A provider that keeps what it reserved shows it by refusing for tokens while the lane gives back: then nothing is given
-- back for a minute, doubled each time up to an hour; after an hour without such a refusal it begins anew.
-- The lane then leaves 2 s of its rate, or two calls, to the provider, whose bucket is empty: else every estimate that
-- errs meets a 429 (0.7 % instead of 0.2 % in the trace of benchmarks/tokens.py).
local function doubt(lane, verdict, cost)
  local DOUBT_US, MOST_DOUBT_US, SLACK_S = 60e6, 3600e6, 2
  if (tonumber(string.match(verdict, '^refused%.(%d)$')) or 1) == 1 then return end
  local h = redis.call('HMGET', lane_key(lane), 'gave', 'doubt', 'doubted')
  local gave, till, long = tonumber(h[1] or '0'), tonumber(h[2] or '0'), tonumber(h[3] or '0')
  if now - gave > DOUBT_US or now < till then return end  -- it gave nothing back, or this is no news
  long = now - till > MOST_DOUBT_US and DOUBT_US or math.min(MOST_DOUBT_US, math.max(DOUBT_US, 2 * long))
  redis.call('HSET', lane_key(lane), 'gave', 0, 'doubt', int(now + long), 'doubted', int(long))
  local L = bucket(lane)
  for i = 2, N do
    if L.p[i] then L.l[i] = L.l[i] - math.max(SLACK_S * L.p[i], 2 * cost[i]) end
  end
  save(L)
end
local function give_back(L, backs, at)                 -- as reconcile says; at: when it was spent, µs -> whether a level rose
  local got = false
  if L.quota then use_quota(L, backs, -1, at) end
  for i = 2, N do
    local back = backs[i]
    if L.p[i] and back ~= 0 then
      L.l[i] = back < 0 and L.l[i] + back or math.max(L.l[i], math.min(L.l[i], L.d[i]) + back)
      got = got or back > 0
    end
    L.c[i] = L.c[i] - back
  end
  return got
end
-- The provider has counted what a call took, and no header governs: the lane gets back what was reserved beyond that, or
-- pays what was missing; its parents and the day's quota likewise. Twice is once: the call's cost is the real one from then on.
-- A bucket is often shallower than one call, and what exceeds its depth would be lost. It is kept beside the level until it
-- is spent, no more than one call's at a time.
-- used: as observe.used packs it
-- returns  whether the lane waits for its pace, and got something back
local function reconcile(ref, r, used)
  if used[1] ~= 1 and now < tonumber(redis.call('HGET', lane_key(r[LANE]), 'doubt') or '0') then return false end
  local L, cost, backs, changed, got = load(r[LANE], r[PARENTS] or {}), {r[COST][1]}, {0}, false, nil
  for i = 2, N do
    backs[i] = used[i] >= 0 and r[COST][i] - used[i] or 0
    cost[i] = r[COST][i] - backs[i]
    changed = changed or backs[i] ~= 0
  end
  if not changed then return false end
  got = give_back(L, backs, r[TICKET][2])
  for i = 1, L.parents and #L.parents or 0 do
    if give_back(L.parents[i], backs, r[TICKET][2]) then wake(L.parents[i].name) end
  end
  r[COST] = cost
  keep(ref, r)
  save(L)
  if got then redis.call('HSET', lane_key(r[LANE]), 'gave', int(now)) end
  local at = got and redis.call('ZSCORE', NEXT, r[LANE])
  return at and tonumber(at) > now
end
