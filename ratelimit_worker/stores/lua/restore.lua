-- Return released calls to their own places in their lanes: a worker stops, lost a child, or never started them. O(log waiting) each.
-- ARGV  now µs · 1: a worker was lost with what had begun; 0: it lives, or ends in good order · tag …
-- returns  how many went back
local n = 0
for i = 3, #ARGV do
  local lane = redis.call('ZSCORE', LEDGER, ARGV[i]) and restore(ARGV[i], ARGV[2] == '1')
  if lane then
    n = n + 1
    release(lane, 1)
    feed(1)
  end
end
return n
