-- How many calls wait on a queue, over all lanes, for their turn or their time. O(1); O(lanes) if they were never counted.
-- ARGV  now µs · queue
-- returns  how many
local h = redis.call('HMGET', census.KEY, 'at', 'q:' .. ARGV[2])
if not h[1] then
  census.take()
  h = redis.call('HMGET', census.KEY, 'at', 'q:' .. ARGV[2])
end
return math.max(0, tonumber(h[2] or '0'))
