-- How many released calls lie ready for the crews of a queue, unread. O(crews).
-- ARGV  now µs · queue
-- returns  how many
local n = 0
for _, name in ipairs(crew.names(ARGV[2])) do n = n + redis.call('LLEN', crew.ready_key(name, ARGV[2])) end
return n
