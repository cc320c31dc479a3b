-- How many calls wait on a queue, over all lanes, for their turn or their time. O(lanes).
-- ARGV  now µs · queue
-- returns  how many
local n = 0
for _, lane in ipairs(redis.call('ZRANGE', key('lanes'), 0, -1)) do
  n = n + redis.call('ZCARD', wait_key(lane, ARGV[2])) + redis.call('ZCARD', due_key(lane, ARGV[2]))
end
return n
