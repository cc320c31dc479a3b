-- Hand the tuner what was seen of the lanes since it last asked, with their state: first those of which a refusal, a sick row
-- or a spent quota was seen. O(lanes + observations).
-- ARGV  now µs · owner · lease ms · most lanes · lanes that it wants to see in any case …
-- returns  nil when another holds the duty; else {now µs, 1 when there is news of more lanes, {lane, hash as flat list (`goods`:
--          plain good answers since it last asked; `took`: µs of all of these together), {observation …}, calls that are out} …}
local duty = key('duty:tune')
local holder = redis.call('GET', duty)
if holder and holder ~= ARGV[2] then return false end
redis.call('SET', duty, ARGV[2], 'PX', ARGV[3])
local lanes, met = {}, {}
local function meet(names)
  for _, lane in ipairs(names) do
    if not met[lane] then met[lane] = true; lanes[#lanes + 1] = lane end
  end
end
meet(redis.call('SPOP', key('urgent'), ARGV[4]))
if #lanes > 0 then redis.call('SREM', key('seen'), unpack(lanes)) end
if #lanes < tonumber(ARGV[4]) then meet(redis.call('SPOP', key('seen'), int(ARGV[4] - #lanes))) end
meet({unpack(ARGV, 5)})
local all = {int(now), redis.call('EXISTS', key('seen'), key('urgent')) > 0 and 1 or 0}
for _, lane in ipairs(lanes) do
  local k = key('seen:') .. lane
  all[#all + 1] = {lane, redis.call('HGETALL', lane_key(lane)), redis.call('LRANGE', k, 0, -1),
    redis.call('ZCARD', out_key(lane))}
  redis.call('DEL', k)
  redis.call('HDEL', lane_key(lane), FIELD.GOODS, FIELD.TOOK)
end
return all
