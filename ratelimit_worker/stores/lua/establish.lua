-- Make a lane that has no call of its own yet, a parent of others; one that exists stays as it is. O(fields).
-- ARGV  now µs · lane · field · value …
-- returns  1 made now | 0 it was there
if not make(ARGV[2], 3, 0) then return 0 end
save(bucket(ARGV[2]))
return 1
