-- Places of waiting calls: their tags, their classes, and the time that they wait for.

-- How many tags a second of the lane's service counts for, at its present pace. Tags count service in calls, or in thousands of
-- tokens where these have a pace, and not in seconds, since a call keeps its tag when the pace changes.
local function speed(L)
  for i = 2, N + 1 do
    local d = (i - 1) % N + 1                          -- the dimensions of tokens first, then requests
    if L.p[d] and L.p[d] > 0 then return TAGS * L.p[d] / WORTH[d] end
  end
  for i = 1, L.parents and #L.parents or 0 do
    local by = speed(L.parents[i])
    if by then return by end
  end
end
-- Seconds of service that a call takes: in the dimension of lane and parents where it takes longest
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
-- Gives a call that arrives in its lane its place, by start-time fair queueing (Goyal et al. 1996) among tenants. Each class is
-- queued separately: else an urgent call would wait behind all other calls of its tenant.
local function place(L, r)
  local k, who = key('tenants:') .. L.name, r[CLASS] .. ':' .. r[TENANT]
  local takes = whole(math.max(1, service(L, r[COST]) / r[WEIGHT]))
  local ends = tonumber(redis.call('ZADD', k, 'INCR', takes, who))
  local start = ends - takes                           -- right if the tenant's calls before this one still wait
  if start < L.v or start >= BAND then
    start = math.max(L.v, start) % BAND
    redis.call('ZADD', k, start + takes, who)
  end
  if ends == takes then                                -- it had no entry
    redis.call('ZREMRANGEBYSCORE', k, '-inf', whole(L.v))  -- entries up to v have no effect any more
    redis.call('EXPIRE', k, TTL_S.TENANT)
  end
  r[SCORE] = start + band(r[CLASS])
end
-- Enters a call that may get a kept answer or an error in an emergency in the list of its lane's such calls. Followers come first
-- (place 0), so that no follower first takes the place of a leader that leaves.
local function degradable(ref, r, place)
  if not r[DEGRADES] then return end
  local k, ttl_s = degradable_key(r[LANE]), ttl_of(r)
  redis.call('ZADD', k, place, ref)
  if redis.call('TTL', k) < ttl_s then redis.call('EXPIRE', k, ttl_s) end
end
-- The sick answers that a call has had in a row, packed in field f of its hash: {µs of the first, µs at which the last one's
-- request left, how many, µs at which the first one's request left}. While it has some, it waits behind all calls that have
-- none, so that probes go to others first. How other calls did meanwhile is in fields of their lane: `good_at` and `good_sent`,
-- when a call was last answered and when that request left (to ANSWERED_EVERY_US, but exact for the first good answer after a
-- sick one), and `witness`: which call had a sick answer since then (µs of its acceptance), SEVERAL, or '' (none that counts).
local failing = {SUSPECT = 1, SEVERAL = '-1'}
function failing.of(ref, r)                            -- -> packed; nil: it had none
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
function failing.behind(ref, r)                        -- a suspect keeps its own place: its worker died, which is not a sick answer
  return r[LOST] == 0 and failing.of(ref, r) and BEHIND or 0
end
-- How many calls wait on each queue, for their turn or their time, over all lanes (hash `waiting`). A script writes its changes
-- once, at its end. The sweep counts anew every EACH_US, since an older version moves calls without counting.
local census = {KEY = key('waiting'), EACH_US = 600e6}
function census.change(queue, by)
  if by ~= 0 then memo.waiting[queue] = (memo.waiting[queue] or 0) + by end
end
-- One more waits on a queue: counted now, before it is put there -> how many that are.
function census.enter(queue)
  census.change(queue, -1)
  return redis.call('HINCRBY', census.KEY, 'q:' .. queue, 1)
end
function census.write()
  for queue, by in pairs(memo.waiting) do
    if by ~= 0 then redis.call('HINCRBY', census.KEY, 'q:' .. queue, by) end
  end
end
-- Counts all, unless that was done within EACH_US. O(lanes), some µs each.
function census.take()
  local at = tonumber(redis.call('HGET', census.KEY, 'at') or '')
  if at and math.abs(now - at) < census.EACH_US then return end
  local totals, flat = {}, {'at', whole(now)}
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
  memo.waiting = {}                                    -- the changes of this script are in the new count
end
local degrade                                          -- in claims.lua
local function wait(ref, r, behind, stands)            -- behind: added to its tag; stands: its queue is known
  degradable(ref, r, 1)
  purse.strict(ref, r)
  census.change(r[QUEUE], redis.call('ZADD', wait_key(r[LANE], r[QUEUE]), whole(r[SCORE] + (behind or 0)), ref))
  if not stands then redis.call('SADD', queues_key(r[LANE]), r[QUEUE]) end
end
local function wait_until(due, ref, r)
  census.change(r[QUEUE], redis.call('ZADD', due_key(r[LANE], r[QUEUE]), whole(due), ref))
  redis.call('SADD', queues_key(r[LANE]), r[QUEUE])
end
local function waits(ref, r)                            -- for its turn, its time, another's answer, or to be handed its own
  return redis.call('ZSCORE', wait_key(r[LANE], r[QUEUE]), ref) or redis.call('ZSCORE', due_key(r[LANE], r[QUEUE]), ref)
    or redis.call('ZSCORE', ANSWERED, ref) or (r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref))
end
local function unwait(ref, r)                          -- -> 1 if it waited
  local n = redis.call('ZREM', wait_key(r[LANE], r[QUEUE]), ref) + redis.call('ZREM', due_key(r[LANE], r[QUEUE]), ref)
  census.change(r[QUEUE], -n)
  return n + redis.call('ZREM', ANSWERED, ref) + (r[CLAIM] and redis.call('ZREM', followers_key(r[CLAIM]), ref) or 0)
end
-- Calls whose time has come go to their places, retries behind the calls that were not tried -> when the next call's time comes
local function ripen(L, queues)
  local at
  for _, q in ipairs(queues) do
    local k = due_key(L.name, q)
    local e = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
    if e[2] and tonumber(e[2]) <= now then
      for _, ref in ipairs(redis.call('ZRANGEBYSCORE', k, '-inf', whole(now), 'LIMIT', 0, 200)) do
        census.change(q, -redis.call('ZREM', k, ref))
        local r = record(ref)
        if r then
          -- A call for later gets its tag only now: if it had got it when it was accepted, a thousand such calls would have
          -- moved the tenant's present calls behind those of all other tenants.
          if r[SCORE] < 0 then place(L, r); keep(ref, r) end
          -- A suspect that waited for its turn is not a retry: it comes back to its own place.
          wait(ref, r, r[ATTEMPTS] > 0 and r[LOST] == 0 and BEHIND or failing.behind(ref, r))
        end
      end
      e = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
    end
    if e[2] then at = math.min(at or 1e18, tonumber(e[2])) end
  end
  return at
end
-- The message for a worker: the stored text with the tag put in. The JSON is never decoded here ({} would become []).
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
