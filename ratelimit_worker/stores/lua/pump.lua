-- Release what is due in every lane, and let deadlines pass. O(lanes due · log waiting): idle lanes cost nothing.
-- ARGV  now µs · owner · lease ms
-- returns  {released, or -1 when another holds the duty; µs to sleep}
local duty = key('duty:release')
local holder = redis.call('GET', duty)
if holder and holder ~= ARGV[2] then return {-1, math.max(0, redis.call('PTTL', duty)) * 1000} end
redis.call('SET', duty, ARGV[2], 'PX', ARGV[3])
-- A waiting call whose deadline has passed, or that has its answer, leaves its lane without a permit: its worker says so
-- in its result. It waits for a worker all the same, or a mass of them would bury the ready list.
local function without_permit(ref, r)
  local free, here = vacant(r[QUEUE])
  local message = here > 0 and free > -SURPLUS and redis.call('HGET', call_key(ref), 'm')
  local c, known
  if message then c, known = crew.pick(r[QUEUE], crew.task_of(message), SURPLUS) end
  if message and not known and now >= r[DEADLINE] then
    c = crew.pick(r[QUEUE], nil, SURPLUS)              -- nobody knows its task: any worker can tell its caller (decline.lua)
  end
  if not c then
    redis.call('ZADD', EXPIRY, int(now + 1e6), ref)
    return
  end
  redis.call('ZREM', EXPIRY, ref)
  unwait(ref, r)
  give({ref = ref, r = r, crew = c, message = message})
  if now >= r[DEADLINE] then count('expired') end
  note(r[LANE], now)
end
for _, ref in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', int(now), 'LIMIT', 0, 100)) do
  local r = record(ref)
  if r and r[VERSION] <= SCHEMA and waits(ref, r) then
    without_permit(ref, r)
  else
    redis.call('ZREM', EXPIRY, ref)                    -- it is out, and entered again if it comes back
    if not r then redis.call('ZREM', ANSWERED, ref) end
  end
end
-- An older version has a pump of its own, which releases into the lists that stock workers read. It sleeps while crews suffice,
-- and half a lease longer.
if crew.suffice() then redis.call('SET', key('duty:pump'), ARGV[2], 'PX', int(ARGV[3] / 2)) end
if redis.call('EXISTS', crew.PARKED, key('onqueues')) > 0 then
  if now > tonumber(redis.call('HGET', PUMP, 'woken') or '0') then
    redis.call('HSET', PUMP, 'woken', int(now + crew.WAKE_US))
    crew.wake(redis.call('SMEMBERS', crew.PARKED))
    for lane in pairs(crew.reclaim()) do release(lane, 1) end
  end
end
local moved = 0
for _, one in ipairs(redis.call('ZRANGEBYSCORE', NEXT, '-inf', int(now), 'LIMIT', 0, 100)) do
  moved = moved + look(one, 100)
  if moved >= 200 then break end                       -- others want the server too
end
-- slots that came free without a call's end (a worker was taken for dead, a lane in the row was emptied)
for _, q in ipairs(redis.call('SMEMBERS', HUNGRY)) do
  local free = vacant(q)
  if free > 0 then feed(math.min(free, 100)) end
end
local at = now + 1e6
local e = redis.call('ZRANGE', NEXT, 0, 0, 'WITHSCORES')
if e[2] then at = math.min(at, tonumber(e[2])) end
e = redis.call('ZRANGE', EXPIRY, 0, 0, 'WITHSCORES')
if e[2] then at = math.min(at, math.max(tonumber(e[2]), now + 20000)) end
redis.call('HSET', PUMP, 'sleep', int(at))
return {moved, int(math.max(0, at - now))}
