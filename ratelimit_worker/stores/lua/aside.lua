-- A running call waits for the result of a call that it has made. It stops counting as running in its lane: else a lane that
-- lets one call run at a time would wait for itself for ever. It keeps its claim and its lease, and ends in free.lua as any
-- other. O(log out) each.
-- ARGV  now µs · tag …
-- returns  how many of them were counted as running
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
