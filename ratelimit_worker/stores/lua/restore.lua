-- Return released calls to their own places in their lanes: a worker stops, or never started them. O(n · ready).
-- ARGV  now µs · tag …
-- returns  how many went back
local n = 0
for i = 2, #ARGV do
  if redis.call('ZSCORE', key('ledger'), ARGV[i]) then
    local k, lane = restore(ARGV[i])
    n = n + k
    if lane then release(lane, 1) feed() end
  end
end
return n
