-- Return released calls to their own places in their lanes: their worker stops, has lost a child, or never started them.
-- O(log waiting) each.
-- ARGV  now µs · 1: the process that ran them has died; 0: the worker ends in good order; 2: the worker lives, so calls that
--       have begun by now are left to it · tag …
-- returns  how many went back
local n = 0
for i = 3, #ARGV do
  local out = redis.call('ZSCORE', LEDGER, ARGV[i])
  local r = out and ARGV[2] == '2' and record((split(ARGV[i])))
  local lane = out and not (r and r[PERMIT] == USED) and restore(ARGV[i], ARGV[2] == '1')
  if lane then
    n = n + 1
    release(lane, 1)
    feed(1)
  end
end
return n
