-- Hand the tuner what was seen of the lanes since it last asked, with their state. O(observations).
-- ARGV  now µs · owner · lease ms · most lanes · lanes that it wants to see in any case …
-- returns  nil when another holds the duty; else {lane, hash as flat list (`goods`: plain good answers since it last asked;
--          `took`: µs of all of these together), {observation …}, calls that are out} …
local duty = key('duty:tune')
local holder = redis.call('GET', duty)
if holder and holder ~= ARGV[2] then return false end
redis.call('SET', duty, ARGV[2], 'PX', ARGV[3])
local all = {int(now)}
local lanes, asked = redis.call('SPOP', key('seen'), ARGV[4]), {}
for _, lane in ipairs(lanes) do asked[lane] = true end
for i = 5, #ARGV do
  if not asked[ARGV[i]] then lanes[#lanes + 1] = ARGV[i] end
end
for _, lane in ipairs(lanes) do
  local k = key('seen:') .. lane
  all[#all + 1] = {lane, redis.call('HGETALL', lane_key(lane)), redis.call('LRANGE', k, 0, -1),
    redis.call('ZCARD', out_key(lane))}
  redis.call('DEL', k)
  redis.call('HDEL', lane_key(lane), FIELD.GOODS, FIELD.TOOK)
end
return all
