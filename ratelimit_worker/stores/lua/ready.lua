-- How many released calls are in the ready lists of a queue's crews, unread. O(crews).
-- ARGV  now µs · queue
-- returns  how many
local n = 0
for _, name in ipairs(crew.names(ARGV[2])) do n = n + redis.call('LLEN', crew.ready_key(name, ARGV[2])) end
return n
