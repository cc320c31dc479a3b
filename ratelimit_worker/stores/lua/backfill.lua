-- Count what was spent before a budget of money was set, unless more has been counted by now. O(budgets).
-- ARGV  now µs · for each: its name · day, billionths of a dollar on it · month, billionths in it (as of `rlw:spent:NAME`)
-- returns  how many were changed
local changes = 0
for i = 2, #ARGV, 5 do
  local p = purse.named(ARGV[i])
  local day, month = tonumber(ARGV[i + 1]) == (p and p.day), tonumber(ARGV[i + 3]) == (p and p.month)
  if day or month then                                 -- else both have ended since the sums were made
    if day then p.spent[1] = math.max(p.spent[1], tonumber(ARGV[i + 2])) end
    if month then p.spent[2] = math.max(p.spent[2], tonumber(ARGV[i + 4])) end
    purse.write(p)
    changes = changes + 1
  end
end
return changes
