-- Release what is due in every lane, and end calls whose deadline has passed. O(lanes due · log waiting): idle lanes cost none.
-- ARGV  now µs · owner · lease ms
-- returns  {released, or -1 when another holds the duty; µs to sleep}
local duty = key('duty:release')
local holder = redis.call('GET', duty)
if holder and holder ~= ARGV[2] then return {-1, math.max(0, redis.call('PTTL', duty)) * 1000} end
redis.call('SET', duty, ARGV[2], 'PX', ARGV[3])
local NO_ROOM_US, NO_WORKER_US = 50000, 1e6            -- until a call without a permit that found no room is looked at again
-- A waiting call whose deadline has passed, or that has its answer, is handed to a worker without a permit, only to store its
-- result. It waits until a worker has room all the same: else a mass of them would fill the ready list before other calls.
local function without_permit(ref, r)
  local free, here = vacant(r[QUEUE])
  local full = here > 0 and free <= -SURPLUS
  local message = here > 0 and not full and redis.call('HGET', call_key(ref), 'm')
  local c, known
  if message then c, known = crew.pick(r[QUEUE], crew.task_of(message), SURPLUS) end
  if message and not known and now >= r[DEADLINE] then
    c = crew.pick(r[QUEUE], nil, SURPLUS)              -- no worker knows its task: any of them can end it (decline.lua)
  end
  if not c then
    redis.call('ZADD', EXPIRY, whole(now + ((full or known) and NO_ROOM_US or NO_WORKER_US)), ref)
    return
  end
  redis.call('ZREM', EXPIRY, ref)
  unwait(ref, r)
  give({ref = ref, r = r, crew = c, message = message})
  if now >= r[DEADLINE] then count('expired') end
  note(r[LANE], now)
end
for _, ref in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', whole(now), 'LIMIT', 0, 100)) do
  local r = record(ref)
  if r and r[VERSION] <= SCHEMA and waits(ref, r) then
    without_permit(ref, r)
  else
    redis.call('ZREM', EXPIRY, ref)                    -- it is out; if it comes back, it is entered again
    if not r then redis.call('ZREM', ANSWERED, ref) end
  end
end
-- An older version has a pump of its own, which releases into lists that stock workers read. Holding its duty makes it sleep;
-- that is done while crews suffice, and lasts half a lease longer.
if crew.suffice() then redis.call('SET', key('duty:pump'), ARGV[2], 'PX', whole(ARGV[3] / 2)) end
if redis.call('EXISTS', crew.PARKED, key('onqueues')) > 0 then
  if now > tonumber(redis.call('HGET', PUMP, 'woken') or '0') then
    redis.call('HSET', PUMP, 'woken', whole(now + crew.WAKE_US))
    crew.wake(redis.call('SMEMBERS', crew.PARKED))
    for lane in pairs(crew.reclaim()) do release(lane, 1) end
  end
end
local moved = 0
for _, one in ipairs(redis.call('ZRANGEBYSCORE', NEXT, '-inf', whole(now), 'LIMIT', 0, 100)) do
  moved = moved + look(one, 100)
  if moved >= 200 then break end                       -- others want the server too
end
-- slots that became free without the end of a call (a worker was taken for dead, a lane in the row has no more calls)
for _, q in ipairs(redis.call('SMEMBERS', HUNGRY)) do
  local free = vacant(q)
  if free > 0 then feed(math.min(free, 100)) end
end
local at = now + 1e6
local e = redis.call('ZRANGE', NEXT, 0, 0, 'WITHSCORES')
if e[2] then at = math.min(at, tonumber(e[2])) end
e = redis.call('ZRANGE', EXPIRY, 0, 0, 'WITHSCORES')
if e[2] then at = math.min(at, math.max(tonumber(e[2]), now + 20000)) end
redis.call('HSET', PUMP, 'sleep', whole(at))
return {moved, whole(math.max(0, at - now))}
