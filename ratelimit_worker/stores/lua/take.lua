-- Give the tuner the new observations of lanes, with the state of those lanes; lanes with a refusal, a sick row or a spent quota
-- come first. O(lanes + observations).
-- ARGV  now µs · owner · lease ms · most lanes · lanes to return even if there is nothing new …
-- returns  nil if another holds the duty; else {now µs, 1: more lanes have news, {lane, hash as flat list, {observation …}, calls
--          that are out, without those whose worker has died} …}; the counters `goods` and `took` in the hash are reset
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
if #lanes < tonumber(ARGV[4]) then meet(redis.call('SPOP', key('seen'), whole(ARGV[4] - #lanes))) end
meet({unpack(ARGV, 5)})
local all = {whole(now), redis.call('EXISTS', key('seen'), key('urgent')) > 0 and 1 or 0}
for _, lane in ipairs(lanes) do
  local k = key('seen:') .. lane
  all[#all + 1] = {lane, redis.call('HGETALL', lane_key(lane)), redis.call('LRANGE', k, 0, -1),
    redis.call('ZCOUNT', out_key(lane), 0, 1)}
  redis.call('DEL', k)
  redis.call('HDEL', lane_key(lane), FIELD.GOODS, FIELD.TOOK)
end
return all
