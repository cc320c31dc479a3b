-- Wake lanes and calls that wait for money in these budgets, if there is some: a budget was raised or removed, or an attempt
-- cost less than expected. O(woken · log waiting).
-- ARGV  now µs · names of budgets …
-- returns  for each: how many were woken, lanes or calls
local woken = {}
for i = 2, #ARGV do
  local p = purse.named(ARGV[i])
  woken[#woken + 1] = p and purse.fund(p) or purse.free(ARGV[i])
end
return woken
