-- A running call waits for a call that it makes itself: it gives up its place among the running of its lane, or a lane that
-- lets one run at a time would wait for itself. Its claim and its lease stay; its end is FREE's. O(log out) each.
-- ARGV  now µs · tag …
-- returns  how many of them had a place
local n = 0
for i = 2, #ARGV do
  local ref = split(ARGV[i])
  local r = record(ref)
  if r and r[VERSION] <= SCHEMA and redis.call('ZREM', out_key(r[LANE]), ARGV[i]) == 1 then
    for _, parent in ipairs(r[PARENTS] or {}) do
      redis.call('ZREM', out_key(parent), ARGV[i])
      wake(parent)
    end
    after(r[LANE], 1, true)
    n = n + 1
  end
end
return n
