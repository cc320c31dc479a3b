-- Read some of all lanes, in no order. Repeated until the cursor is 0, it meets every lane that exists the whole time.
-- O(most · fields).
-- ARGV  now µs · cursor (0: begin) · about how many · field of a lane's hash … (none: all)
-- returns  {cursor (0: that was all), {lane, when it was used last (µs), 1 if calls of it wait, calls that are out,
--          {values of the fields}, or the whole hash as flat list} …}
local fields = {unpack(ARGV, 4)}
local found = redis.call('ZSCAN', key('lanes'), ARGV[2], 'COUNT', ARGV[3])
local all = {found[1]}
for i = 1, #found[2], 2 do
  local lane = found[2][i]
  all[#all + 1] = {lane, found[2][i + 1], redis.call('EXISTS', queues_key(lane)), redis.call('ZCARD', out_key(lane)),
    #fields > 0 and redis.call('HMGET', lane_key(lane), unpack(fields)) or redis.call('HGETALL', lane_key(lane))}
end
return all
