-- A lane comes to be without a call of its own: a parent of others. Nothing changes where it is known. O(fields).
-- ARGV  now µs · lane · field · value …
-- returns  1 made now | 0 it was there
if not make(ARGV[2], 3, 0) then return 0 end
save(bucket(ARGV[2]))
return 1
