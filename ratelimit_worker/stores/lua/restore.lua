-- Return released calls to their own places in their lanes: a worker stops, or never started them. O(log waiting) each.
-- ARGV  now µs · tag …
-- returns  how many went back
local n = 0
for i = 2, #ARGV do
  local lane = redis.call('ZSCORE', LEDGER, ARGV[i]) and restore(ARGV[i])
  if lane then
    n = n + 1
    release(lane, 1)
    feed(1)
  end
end
return n
