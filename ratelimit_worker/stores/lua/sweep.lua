-- Return what nobody renewed to its lane; look for lanes that were forgotten. O(expired · ready + lanes).
-- ARGV  now µs · lease µs · most
-- returns  how many went back
local lease, n, touched = tonumber(ARGV[2]), 0, {}
redis.call('HSET', key('pump'), 'lease', int(lease))
-- nobody swept for a while (Redis or all workers were away): every lease is stale, so let the living renew first
local h = redis.call('HMGET', key('pump'), 'swept', 'grace')
local grace = tonumber(h[2] or '0')
if now - tonumber(h[1] or '0') > lease / 2 then grace = now + lease / 2 end
redis.call('HSET', key('pump'), 'swept', int(now), 'grace', int(grace))
if now < grace then return 0 end
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', key('ledger'), '-inf', int(now), 'LIMIT', 0, ARGV[3])) do
  local k, lane = restore(tag)
  n = n + k
  if lane then touched[lane] = true end
end
if n > 0 then count('restored', n) end
-- audit: room counts what the ledger holds, and no lane that waits is forgotten
for _, lane in ipairs(redis.call('SMEMBERS', key('busy'))) do
  for _, tag in ipairs(redis.call('ZRANGE', key('out:') .. lane, 0, -1)) do
    if not redis.call('ZSCORE', key('ledger'), tag) then
      redis.call('ZREM', key('out:') .. lane, tag)
      count('leaks')
      touched[lane] = true
    end
  end
  if redis.call('EXISTS', key('out:') .. lane) == 0 then redis.call('SREM', key('busy'), lane) end
end
for _, lane in ipairs(redis.call('ZRANGE', key('lanes'), 0, -1)) do
  local waits = redis.call('EXISTS', key('queues:') .. lane, key('due:') .. lane) > 0
  if touched[lane] or (waits and not redis.call('ZSCORE', key('next'), lane)
      and not redis.call('ZSCORE', key('hungry'), lane)) then
    release(lane, 1)
  end
end
redis.call('ZREMRANGEBYSCORE', key('lanes'), '-inf', int(now - LANE_TTL_S * 1e6))
return n
