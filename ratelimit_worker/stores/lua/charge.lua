-- Count, in budgets of money, the costs of attempts that were not known when these ended. O(attempts).
-- ARGV  now µs · for each: lane · tenant · context · billionths of a dollar · when it was made, µs
-- returns  how many changes there were
local changes = 0
for i = 2, #ARGV, 5 do
  local r = {[TENANT] = ARGV[i + 1], [MONEY] = {0, purse.WAITS, ARGV[i + 2]}}
  for _, p in ipairs(purse.of(load(ARGV[i]), r)) do
    purse.change(p, tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]))
    purse.learn(p, tonumber(ARGV[i + 3]))
    purse.write(p)
    changes = changes + 1
  end
end
return changes
