-- Places of waiting calls: their tags, their classes, and the time at which they join.

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
  local start = math.max(L.v, tonumber(redis.call('ZSCORE', k, who) or '0')) % BAND
  local new = redis.call('ZADD', k, int(start + math.max(1, service(L, r[COST]) / r[WEIGHT])), who)
  if new == 1 then
    redis.call('ZREMRANGEBYSCORE', k, '-inf', int(L.v))  -- those say no more than v does
    redis.call('EXPIRE', k, TTL_S.TENANT)
  end
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
-- The sick answers that a call has had in a row, packed in field f of its hash: {µs of the first, µs at which the request of
-- the last left, how many, µs at which the request of the first left}. While it has some it waits behind all that have none: probes go to others first.
-- How others fared meanwhile is told by their lane: `good_at` and `good_sent`, when it was answered and when that request
-- had left (no more exact than GOOD_US, but for the first after a sick one), and `witness`: which call had a sick answer since (by the µs at which it was
-- accepted), SEVERAL, or '': none that counts.
local failing = {SUSPECT = 1, SEVERAL = '-1'}
function failing.of(ref, r)                            -- nil: none
  return r[NUMBER] > 0 and redis.call('HGET', call_key(ref), 'f') or nil
end
function failing.more(ref, r)
  local f = failing.of(ref, r)
  f = f and cmsgpack.unpack(f) or {now, 0, 0, r[TICKET][2]}
  redis.call('HSET', call_key(ref), 'f', cmsgpack.pack({f[1], r[TICKET][2], f[3] + 1, f[4]}))
end
function failing.ends(ref, r)
  if r[NUMBER] > 1 then redis.call('HDEL', call_key(ref), 'f') end
end
function failing.behind(ref, r)                        -- a suspect keeps its own place: its worker died, it failed nobody
  return r[LOST] == 0 and failing.of(ref, r) and BEHIND or 0
end
-- How many calls wait on each queue, for their turn or their time, over all lanes: `waiting`, which nobody counts anew but
-- after an older version may have moved calls past it. What a script changes is written once, at its end.
local census = {KEY = key('waiting'), EACH_US = 600e6}
function census.change(queue, by)
  if by ~= 0 then memo.waiting[queue] = (memo.waiting[queue] or 0) + by end
end
function census.write()
  for queue, by in pairs(memo.waiting) do
    if by ~= 0 then redis.call('HINCRBY', census.KEY, 'q:' .. queue, by) end
  end
end
-- All are counted, unless that was done a short time ago. O(lanes), some µs each.
function census.take()
  local at = tonumber(redis.call('HGET', census.KEY, 'at') or '')
  if at and math.abs(now - at) < census.EACH_US then return end
  local totals, flat = {}, {'at', int(now)}
  for _, lane in ipairs(redis.call('ZRANGE', key('lanes'), 0, -1)) do
    for _, q in ipairs(redis.call('SMEMBERS', queues_key(lane))) do
      totals[q] = (totals[q] or 0) + redis.call('ZCARD', wait_key(lane, q)) + redis.call('ZCARD', due_key(lane, q))
    end
  end
  for q, n in pairs(totals) do
    flat[#flat + 1] = 'q:' .. q
    flat[#flat + 1] = n
  end
  redis.call('DEL', census.KEY)
  for i = 1, #flat, 1000 do redis.call('HSET', census.KEY, unpack(flat, i, math.min(i + 999, #flat))) end
  memo.waiting = {}                                    -- what this script has changed is in it
end
local degrade                                          -- what is done with them; below, since it needs claims
local function wait(ref, r, behind, stands)            -- stands: its queue is known to be among the lane's
  degradable(ref, r, 1)
  census.change(r[QUEUE], redis.call('ZADD', wait_key(r[LANE], r[QUEUE]), int(r[SCORE] + (behind or 0)), ref))
  if not stands then redis.call('SADD', queues_key(r[LANE]), r[QUEUE]) end
end
local function wait_until(due, ref, r)
  census.change(r[QUEUE], redis.call('ZADD', due_key(r[LANE], r[QUEUE]), int(due), ref))
  redis.call('SADD', queues_key(r[LANE]), r[QUEUE])
end
local function waits(ref, r)                            -- for its turn, its time, another's answer, or to be handed its own
  return redis.call('ZSCORE', wait_key(r[LANE], r[QUEUE]), ref) or redis.call('ZSCORE', due_key(r[LANE], r[QUEUE]), ref)
    or redis.call('ZSCORE', ANSWERED, ref) or (r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref))
end
local function unwait(ref, r)                          -- 1 when it waited
  local n = redis.call('ZREM', wait_key(r[LANE], r[QUEUE]), ref) + redis.call('ZREM', due_key(r[LANE], r[QUEUE]), ref)
  census.change(r[QUEUE], -n)
  return n + redis.call('ZREM', ANSWERED, ref) + (r[CLAIM] and redis.call('ZREM', followers_key(r[CLAIM]), ref) or 0)
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
        census.change(q, -redis.call('ZREM', k, ref))
        local r = record(ref)
        if r then
          -- A call for later arrives now: had it its place since it was accepted, a thousand of them would put the
          -- tenant's calls of today behind everybody's.
          if r[SCORE] < 0 then place(L, r); keep(ref, r) end
          -- A suspect that waited for its turn is no retry now: it comes back to its own place.
          wait(ref, r, r[ATTEMPTS] > 0 and r[LOST] == 0 and BEHIND or failing.behind(ref, r))
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
