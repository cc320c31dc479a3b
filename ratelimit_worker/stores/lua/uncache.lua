-- Forget kept answers. O(entries · log).
-- ARGV  now µs · fingerprint …
-- returns  how many there were
local n = 0
for i = 2, #ARGV do n = n + uncache(ARGV[i]) end
return n
