-- The shared prelude: names of keys, the lane's buckets, room, release, return. scripts.py puts it before each script.
-- K is the global key prefix (kombu's global_keyprefix), set by scripts.py. Time: ARGV[1], µs; 0: this server's clock.
local now = tonumber(ARGV[1])
if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end

local DAY_US, HOUR_US = 86400e6, 3600e6
local LANE_TTL_S, TENANT_TTL_S = 2592000, 3600
local LOOK_S = 0.02                                    -- what a paced lane may earn while a message travels
local OFFSET_US = {high = 0, normal = 60e6, low = 300e6}  -- class offsets, µs of service: classes age
local N = 4                                            -- dimensions: requests, tokens, input_tokens, output_tokens
local SICK_ROW = 5                                     -- sick answers in a row: the provider is away
-- a call's record, packed in field i of its hash
local VERSION, LANE, QUEUE, SCORE, CLASS, TENANT, COST, ACCEPTED, DEADLINE, RELEASES, TRIES, LOST, STARTED, RESTORED,
  TICKET, PUB, READY_AT, NUMBER = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18

local function int(x) return string.format('%.0f', x) end
local function key(name) return K .. 'rlw:' .. name end
local function lane_key(lane) return key('lane:') .. lane end
local function wait_key(lane, queue) return key('wait:') .. #lane .. ':' .. lane .. ':' .. queue end
local function call_key(ref) return key('call:') .. ref end
local function count(name, by) redis.call('HINCRBY', key('counters'), name, by or 1) end

local function record(ref)
  local packed = redis.call('HGET', call_key(ref), 'i')
  return packed and cmsgpack.unpack(packed)
end
local function keep(ref, r) redis.call('HSET', call_key(ref), 'i', cmsgpack.pack(r)) end

-- ── buckets ──────────────────────────────────────────────────────────────────────────────────────────────────────
-- p1..p4 pace (units/s; absent: that dimension is not bound; 0: closed), l level, d depth, g guard, c sent in all
local FIELDS = {'ts', 'gate', 'cap', 'unlimited', 'seq', 'v', 'width', 'gap', 'sick',
  'p1', 'l1', 'd1', 'g1', 'c1', 'p2', 'l2', 'd2', 'g2', 'c2', 'p3', 'l3', 'd3', 'g3', 'c3', 'p4', 'l4', 'd4', 'g4', 'c4'}
local function load(lane)
  local h = redis.call('HMGET', lane_key(lane), unpack(FIELDS))
  local L = {name = lane, was = tonumber(h[1]), gate = tonumber(h[2]) or 0, cap = tonumber(h[3]) or 0,
    unlimited = h[4] == '1', seq = tonumber(h[5]) or 0, v = tonumber(h[6]) or 0, width = tonumber(h[7]) or 0,
    gap = tonumber(h[8]) or 0, sick = tonumber(h[9]) or 0, p = {}, l = {}, d = {}, g = {}, c = {}}
  local dt = math.max(0, now - (L.was or now)) / 1e6
  for i = 1, N do
    local at = 9 + (i - 1) * 5
    L.p[i], L.c[i] = tonumber(h[at + 1]), tonumber(h[at + 5]) or 0
    if L.p[i] then
      L.d[i], L.g[i] = tonumber(h[at + 3]) or 1, tonumber(h[at + 4]) or 0
      L.l[i] = math.min(L.d[i], (tonumber(h[at + 2]) or L.d[i]) + L.p[i] * dt)
    end
  end
  return L
end
local function save(L)
  local args = {'ts', int(math.max(now, L.was or 0)), 'seq', int(L.seq), 'v', int(L.v), 'gate', int(L.gate)}
  for i = 1, N do
    if L.p[i] then args[#args + 1] = 'l' .. i; args[#args + 1] = string.format('%.6f', L.l[i]) end
    args[#args + 1] = 'c' .. i; args[#args + 1] = string.format('%.3f', L.c[i])
  end
  redis.call('HSET', lane_key(L.name), unpack(args))
  if not L.was or math.floor(L.was / HOUR_US) ~= math.floor(now / HOUR_US) then
    redis.call('EXPIRE', lane_key(L.name), LANE_TTL_S)
    redis.call('ZADD', key('lanes'), int(now), L.name)
  end
end
-- µs until every dimension admits the cost (0: now; nil: closed until set-points change)
local function admits_in(L, cost)
  if L.unlimited then return math.max(0, L.gate - now) end
  local wait = math.max(0, L.gate - now)
  for i = 1, N do
    local pace = L.p[i]
    if pace then
      local need = math.min(cost[i], L.d[i] - L.g[i]) + L.g[i]
      if L.l[i] + 1e-9 < need then
        if pace <= 0 then return nil end
        wait = math.max(wait, math.ceil((need - L.l[i]) / pace * 1e6))
      end
    end
  end
  return wait
end
local function spend(L, cost)
  L.seq = L.seq + 1
  for i = 1, N do
    if L.p[i] then L.l[i] = L.l[i] - cost[i] end
    L.c[i] = L.c[i] + cost[i]
  end
  if L.width > 0 and L.gap > 0 then L.gate = math.max(L.gate, now + L.gap) end
end
local function refund(L, cost)
  for i = 1, N do
    if L.p[i] then L.l[i] = math.min(L.d[i], L.l[i] + cost[i]) end
    L.c[i] = L.c[i] - cost[i]
  end
end

-- ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────
-- slots of the workers that live, in all and for one queue; the sums are kept until the first of them would expire
local function slots(queue)
  local k = key('room')
  local h = redis.call('HMGET', k, 'total', 'until', 'q:' .. queue)
  if h[1] and now <= tonumber(h[2]) then return tonumber(h[1]), tonumber(h[3]) or 0 end
  for _, w in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '-inf', int(now))) do
    redis.call('ZREM', key('workers'), w); redis.call('HDEL', key('slots'), w)
  end
  local total, by = 0, {}
  for _, v in ipairs(redis.call('HVALS', key('slots'))) do
    local w = cmsgpack.unpack(v)
    total = total + w[1]
    for i = 2, #w do by[w[i]] = (by[w[i]] or 0) + w[1] end
  end
  local first = redis.call('ZRANGE', key('workers'), 0, 0, 'WITHSCORES')
  redis.call('DEL', k)
  redis.call('HSET', k, 'total', total, 'until', int(first[2] and tonumber(first[2]) or now))
  for q, n in pairs(by) do redis.call('HSET', k, 'q:' .. q, n) end
  redis.call('EXPIRE', k, 60)
  return total, by[queue] or 0
end
-- how many more calls of this lane may go to this queue now
local function room(L, queue)
  local total, here = slots(queue)
  if here == 0 then return 0 end
  local k = key('out:') .. L.name
  local out = redis.call('ZCARD', k)
  local free = math.min(here - redis.call('SCARD', key('onqueue:') .. queue), total - redis.call('ZCARD', key('ledger')))
  local others = redis.call('ZCARD', key('hungry'))
  if others > 0 and redis.call('ZSCORE', key('hungry'), L.name) then others = others - 1 end
  if others > 0 then                                   -- bulkhead: a share each while others have a permit and no room
    local busy = redis.call('SCARD', key('busy')) + (out == 0 and 1 or 0)
    free = math.min(free, math.max(1, math.floor(here / math.max(1, busy))) - out)
  end
  local ahead = L.unlimited and here or math.floor((L.p[1] or 0) * LOOK_S)
  local r = free + ahead
  if not L.unlimited then                              -- when workers stall, what was released must not start as a burst
    r = math.min(r, 1 + math.max(1, ahead) - redis.call('ZCOUNT', k, 0, 0))
  end
  if L.width > 0 then return math.min(r, L.width - out) end
  if L.cap > 0 then return math.min(r, L.cap - out) end
  return r
end

-- ── the pump's plan ──────────────────────────────────────────────────────────────────────────────────────────────
local function plan(at)                                -- wake the pump when `at` is before the end of its sleep
  local sleep = tonumber(redis.call('HGET', key('pump'), 'sleep') or '1e18')
  if at < sleep then
    redis.call('HSET', key('pump'), 'sleep', int(at))
    redis.call('PUBLISH', key('wake'), int(at))
  end
end
local function note(lane, at)                          -- the pump has to look at `lane` at `at` (nil: it need not)
  if not at then redis.call('ZREM', key('next'), lane) return end
  redis.call('ZADD', key('next'), int(at), lane)
  plan(at)
end

-- ── from waiting to ready ────────────────────────────────────────────────────────────────────────────────────────
local function wait(ref, r)
  redis.call('ZADD', wait_key(r[LANE], r[QUEUE]), int(r[SCORE]), ref)
  redis.call('SADD', key('queues:') .. r[LANE], r[QUEUE])
end
-- µs of the lane's service that a call takes: its dearest dimension
local function service_us(L, cost)
  local s = 0
  for i = 1, N do
    if L.p[i] and L.p[i] > 0 then s = math.max(s, cost[i] / L.p[i]) end
  end
  return s > 0 and s * 1e6 or cost[1] * 1000
end
-- start-time fair queueing (Goyal et al. 1996): the place of a new call in its lane
local function place(L, class, tenant, weight, cost)
  local k = key('tenants:') .. L.name
  local start = math.max(L.v, tonumber(redis.call('HGET', k, tenant) or '0'))
  redis.call('HSET', k, tenant, int(start + math.max(1, service_us(L, cost) / weight)))
  redis.call('EXPIRE', k, TENANT_TTL_S)
  return start + (OFFSET_US[class] or OFFSET_US.normal)
end
-- into the ready list and the ledger in one step. The message says '"delivery_tag": "@"' first of all places.
local function give(ref, r, ttl_us)
  local message = redis.call('HGET', call_key(ref), 'm')
  r[RELEASES] = r[RELEASES] + 1
  r[STARTED], r[READY_AT] = 0, now
  local tag = ref .. '.' .. r[RELEASES]
  local a, b = string.find(message, '"delivery_tag": "@"', 1, true)
  message = string.sub(message, 1, b - 2) .. tag .. string.sub(message, b)
  if r[RESTORED] == 1 then
    a, b = string.find(message, '"redelivered": false', 1, true)
    if a then message = string.sub(message, 1, a - 1) .. '"redelivered": true' .. string.sub(message, b + 1) end
  end
  redis.call('ZADD', key('ledger'), int(now + ttl_us), tag)
  redis.call('ZADD', key('out:') .. r[LANE], 0, tag)   -- 0: not begun, 1: begun
  redis.call('SADD', key('busy'), r[LANE])
  redis.call('SADD', key('onqueue:') .. r[QUEUE], tag)
  keep(ref, r)
  redis.call('LPUSH', K .. r[QUEUE], message)
end
local function lease_us() return tonumber(redis.call('HGET', key('pump'), 'lease') or '30e6') end

-- the first of the lane's calls among the queues that have room: ref, score, queue, room; or any of them, without room
local function first_of(L, rooms)
  local ref, score, queue
  local blocked = false
  for _, q in ipairs(redis.call('SMEMBERS', key('queues:') .. L.name)) do
    local e = redis.call('ZRANGE', wait_key(L.name, q), 0, 0, 'WITHSCORES')
    if not e[1] then
      redis.call('SREM', key('queues:') .. L.name, q)
    else
      if not rooms[q] then rooms[q] = room(L, q) end
      if rooms[q] <= 0 then
        blocked = true
      elseif not score or tonumber(e[2]) < score then
        ref, score, queue = e[1], tonumber(e[2]), q
      end
    end
  end
  return ref, queue, blocked
end
-- calls whose time has come go to their place
local function ripen(lane)
  local k = key('due:') .. lane
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', k, '-inf', int(now), 'LIMIT', 0, 200)) do
    redis.call('ZREM', k, ref)
    local r = record(ref)
    if r then wait(ref, r) end
  end
  local e = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
  return e[2] and tonumber(e[2])
end
-- release at most `most` calls -> how many went; leaves the lane in `next` or `hungry` when something waits
local function release(lane, most)
  local L = load(lane)
  local at = ripen(lane)
  local moved, rooms, hungry, lease = 0, {}, false, lease_us()
  while true do
    local ref, queue, blocked = first_of(L, rooms)
    if not ref then hungry = blocked break end
    local r = record(ref)
    if not r then
      redis.call('ZREM', wait_key(lane, queue), ref)   -- its record outlived its time
    else
      local wait_us = admits_in(L, r[COST])
      if not wait_us then break end                    -- closed: new set-points look again
      if wait_us > 0 then at = math.min(at or 1e18, now + wait_us) break end
      if moved >= most then at = now break end
      redis.call('ZREM', wait_key(lane, queue), ref)
      spend(L, r[COST])
      L.v = math.max(L.v, r[SCORE] - (OFFSET_US[r[CLASS]] or OFFSET_US.normal))
      r[TICKET] = {L.seq, now, L.c[1], L.c[2], L.c[3], L.c[4]}
      give(ref, r, lease)
      moved = moved + 1
      rooms[queue] = rooms[queue] - 1
      if next(rooms, next(rooms)) then rooms = {} end  -- queues share slots and caps: count again
    end
  end
  if moved > 0 then save(L) end
  if hungry then redis.call('ZADD', key('hungry'), 'NX', int(now), lane) else redis.call('ZREM', key('hungry'), lane) end
  note(lane, at)
  return moved
end
-- a slot is free: the lane that has waited longest for one takes it
local function feed()
  for _, other in ipairs(redis.call('ZRANGE', key('hungry'), 0, 7)) do
    if release(other, 1) > 0 then
      redis.call('ZADD', key('hungry'), 'XX', int(now), other)  -- served: to the end of the row
      break
    end
  end
end
local function feed_all()
  for _, lane in ipairs(redis.call('ZRANGE', key('hungry'), 0, -1)) do release(lane, 1000) end
end
-- the pump is late (its holder was killed, or its thread starves): whoever is here does its work for one lane
local function overdue()
  local e = redis.call('ZRANGE', key('next'), 0, 0, 'WITHSCORES')
  if e[2] and tonumber(e[2]) < now - 4000 then release(e[1], 20) end
end

-- ── out of the ledger ────────────────────────────────────────────────────────────────────────────────────────────
local function split(tag)
  local ref, n = string.match(tag, '^(.*)%.(%d+)$')
  return ref, tonumber(n)
end
local function leave(tag, r)                           -- the call is no longer out
  redis.call('ZREM', key('ledger'), tag)
  redis.call('ZREM', key('out:') .. r[LANE], tag)
  redis.call('SREM', key('onqueue:') .. r[QUEUE], tag)
  if redis.call('EXISTS', key('out:') .. r[LANE]) == 0 then redis.call('SREM', key('busy'), r[LANE]) end
end
local function forget(ref)
  redis.call('DEL', call_key(ref), key('payload:') .. ref, key('settled:') .. ref)
  redis.call('ZREM', key('expiry'), ref)
end
-- back into the lane: to its own place, or to its time
local function go_back(ref, tag, r, due)
  leave(tag, r)
  keep(ref, r)
  if due > now then
    redis.call('ZADD', key('due:') .. r[LANE], int(due), ref)
  else
    wait(ref, r)
  end
end
-- a worker died, or the message lay unread: 1 when the call went back
local function restore(tag)
  local ref = split(tag)
  local r = ref and record(ref)
  if not r or r[VERSION] > SCHEMA then
    redis.call('ZREM', key('ledger'), tag)
    if r then redis.call('ZADD', key('ledger'), int(now + DAY_US), tag) end  -- a newer worker's: left alone
    return 0
  end
  for _, raw in ipairs(redis.call('LRANGE', K .. r[QUEUE], 0, -1)) do
    if string.find(raw, '"delivery_tag": "' .. tag .. '"', 1, true) then redis.call('LREM', K .. r[QUEUE], 1, raw) end
  end
  if r[STARTED] == 1 then
    r[LOST] = r[LOST] + 1
  else
    local L = load(r[LANE]); refund(L, r[COST]); save(L)
  end
  r[STARTED], r[RESTORED] = 0, 1
  go_back(ref, tag, r, 0)
  return 1, r[LANE]
end

-- ── what is learned from an attempt ──────────────────────────────────────────────────────────────────────────────
-- verdict: 'good' answered, 'refused' 429, 'sick', 'other'. seen: the tuner's observation, packed by Python, or ''
local function learn(lane, verdict, seen, outbox, gate_us, cost)
  if outbox ~= '' then redis.call('XADD', key('outbox'), 'MAXLEN', '~', 5000000, '*', 'a', outbox) end
  local k = lane_key(lane)
  if verdict == 'good' then
    local h = redis.call('HMGET', k, 'sick', 'refusals')
    if (h[1] or '0') ~= '0' or (h[2] or '0') ~= '0' then redis.call('HSET', k, 'sick', 0, 'refusals', 0) end
  elseif verdict == 'sick' then
    if redis.call('HINCRBY', k, 'sick', 1) >= SICK_ROW then redis.call('PUBLISH', key('tune'), lane) end
  elseif verdict == 'refused' then
    local L = load(lane)
    refund(L, cost)
    for i = 1, N do
      if L.p[i] then L.l[i] = math.min(L.l[i], 0) end
    end
    if gate_us == 0 then                               -- no Retry-After: 0.05·2^k s for the k-th in a row, at most 15 s
      local row = tonumber(redis.call('HGET', k, 'refusals') or '0')
      if L.gate <= now then row = redis.call('HINCRBY', k, 'refusals', 1) - 1 end
      gate_us = math.min(15e6, 50000 * 2 ^ math.max(0, row)) * (0.5 + (now % 1000) / 2000)
    end
    L.gate = math.max(L.gate, now + gate_us)
    save(L)
    redis.call('PUBLISH', key('tune'), lane)
  end
  if seen ~= '' then
    redis.call('RPUSH', key('seen:') .. lane, seen)
    redis.call('LTRIM', key('seen:') .. lane, -2000, -1)
    redis.call('EXPIRE', key('seen:') .. lane, 3600)
  end
  redis.call('SADD', key('seen'), lane)
end
