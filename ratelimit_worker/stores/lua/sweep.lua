-- Return what nobody renewed to its lane; look for lanes and tags that were forgotten. O(expired + out + lanes at a time).
-- ARGV  now µs · lease µs · most
-- returns  how many went back
local LANES_AT_A_TIME = 200
local lease, n = tonumber(ARGV[2]), 0
local h = redis.call('HMGET', PUMP, 'swept', 'grace', 'audit')
local swept, grace, cursor = tonumber(h[1] or '0'), tonumber(h[2] or '0'), tonumber(h[3] or '0')
redis.call('HSET', PUMP, 'lease', int(lease), 'swept', int(now))
-- the clock was set back: nothing may wait for a time that was planned on the old one
if swept > now + STEP_US then
  for _, lane in ipairs(redis.call('ZRANGE', NEXT, 0, -1)) do redis.call('ZADD', NEXT, int(now), lane) end
  grace = math.min(grace, now + lease / 2)
end
-- nobody swept for a while (Redis or all workers were away): every lease is stale, so let the living renew first
if now - swept > lease / 2 then grace = now + lease / 2 end
redis.call('HSET', PUMP, 'grace', int(grace))
if now < grace then return 0 end
local touched = {}
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', LEDGER, '-inf', int(now), 'LIMIT', 0, ARGV[3])) do
  local lane = restore(tag, true)
  if lane then n = n + 1; touched[lane] = true end
end
if n > 0 then count('restored', n) end
recall(false)
-- audit: what room and bounds are counted from holds what the ledger holds
local function prune(k, tags, remove, lane)
  for _, tag in ipairs(tags) do
    if not redis.call('ZSCORE', LEDGER, tag) then
      redis.call(remove, k, tag)
      count('leaks')
      if lane then touched[lane] = true end
    end
  end
end
for _, lane in ipairs(redis.call('SMEMBERS', key('busy'))) do
  prune(out_key(lane), redis.call('ZRANGE', out_key(lane), 0, -1), 'ZREM', lane)
  if redis.call('EXISTS', out_key(lane)) == 0 then redis.call('SREM', key('busy'), lane) end
end
for _, q in ipairs(redis.call('SMEMBERS', key('onqueues'))) do
  prune(crew.older_key(q), redis.call('SMEMBERS', crew.older_key(q)), 'SREM')
  if redis.call('EXISTS', crew.older_key(q)) == 0 then redis.call('SREM', key('onqueues'), q) end
end
for _, at in ipairs(redis.call('SMEMBERS', key('oncrews'))) do
  local name, q = string.match(at, '^([^:]*):(.*)$')
  local k, read = crew.out_key(name, q), false
  prune(k, redis.call('SMEMBERS', k), 'SREM')
  if redis.call('EXISTS', k) == 0 then
    local _, _, crews = slots(q)
    for _, c in ipairs(crews) do read = read or c[1] == name end
    if not read then redis.call('DEL', crew.ready_key(name, q)) end  -- releases that are over, and nobody reads them
    redis.call('SREM', key('oncrews'), at)
  end
end
prune(ASIDE, redis.call('SMEMBERS', ASIDE), 'SREM')
memo[ASIDE_N] = nil
suspect.audit()
for lane in pairs(touched) do
  release(lane, 1)
  wake(lane)
end
-- A lane that was not used for a day goes, unless somebody has said something of it, by settings, `limits set` or a pin; it
-- is halted; others share its budget; or what it has learned took IDLE.CALLS requests.
local IDLE = {US = DAY_US, CALLS = 100}
local function stays(lane)
  local h = redis.call('HMGET', lane_key(lane), 'configured', 'rpm', 'tpm', 'cap', 'bounds', 'shared', 'unlimited', 'mode', 'c1')
  for i = 1, 6 do
    if h[i] and h[i] ~= '' and h[i] ~= '0' then return true end
  end
  return h[7] == '1' or h[8] == 'HALT' or (tonumber(h[9]) or 0) >= IDLE.CALLS
    or redis.call('HEXISTS', key('pins'), lane) == 1 or redis.call('EXISTS', turns_key(lane)) == 1
end
-- audit: no lane that waits is forgotten; some lanes each time, all in turn
local some = redis.call('ZRANGE', key('lanes'), cursor, cursor + LANES_AT_A_TIME - 1, 'WITHSCORES')
local gone = 0
for i = 1, #some, 2 do
  local lane = some[i]
  if redis.call('EXISTS', queues_key(lane)) == 1 then
    if not redis.call('ZSCORE', NEXT, lane) then release(lane, 1) end
  elseif redis.call('EXISTS', out_key(lane)) == 0 then
    local old = tonumber(some[i + 1]) < now - IDLE.US
    if old and redis.call('EXISTS', lane_key(lane)) == 1 and not stays(lane) then
      redis.call('DEL', lane_key(lane), key('seen:') .. lane, key('tenants:') .. lane, key('probed:') .. lane)
      redis.call('SREM', key('seen'), lane)
      redis.call('ZREM', NEXT, lane)
    end
    if old and redis.call('EXISTS', lane_key(lane)) == 0 then
      redis.call('ZREM', key('lanes'), lane)
      gone = gone + 1
    end
  end
end
local whole = #some == 2 * LANES_AT_A_TIME
redis.call('HSET', PUMP, 'audit', whole and cursor + LANES_AT_A_TIME - gone or 0)
feed(TRIES)
return n
