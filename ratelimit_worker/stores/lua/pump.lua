-- Release what is due in every lane, and let deadlines pass. O(lanes due · log waiting).
-- ARGV  now µs · owner · lease ms
-- returns  {released, or -1 when another holds the duty; µs to sleep}
local duty = key('duty:pump')
local holder = redis.call('GET', duty)
if holder and holder ~= ARGV[2] then return {-1, redis.call('PTTL', duty) * 1000} end
redis.call('SET', duty, ARGV[2], 'PX', ARGV[3])
local moved = 0
for _, lane in ipairs(redis.call('ZRANGEBYSCORE', key('next'), '-inf', int(now), 'LIMIT', 0, 100)) do
  moved = moved + release(lane, 100)
end
-- a waiting call whose deadline has passed leaves its lane without a permit; its worker says so in its result
local lease = lease_us()
for _, ref in ipairs(redis.call('ZRANGEBYSCORE', key('expiry'), '-inf', int(now), 'LIMIT', 0, 100)) do
  redis.call('ZREM', key('expiry'), ref)
  local r = record(ref)
  if r and redis.call('ZREM', wait_key(r[LANE], r[QUEUE]), ref) + redis.call('ZREM', key('due:') .. r[LANE], ref) > 0 then
    local L = load(r[LANE]); spend(L, r[COST]); save(L)  -- FREE gives it back, since the call never starts
    give(ref, r, lease)
    count('expired')
  end
end
local at = now + 1e6
for _, k in ipairs({key('next'), key('expiry')}) do
  local e = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
  if e[2] then at = math.min(at, tonumber(e[2])) end
end
redis.call('HSET', key('pump'), 'sleep', int(at))
return {moved, math.max(0, at - now)}
