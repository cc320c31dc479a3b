-- Celery acknowledged a message: the call's stay in the ledger ends, its slot is free. O(log waiting) each.
-- ARGV  now µs · tag …
-- returns  how many were still in the ledger
local freed = 0
for i = 2, #ARGV do
  local tag = ARGV[i]
  local ref = split(tag)
  if redis.call('ZSCORE', LEDGER, tag) then
    local r = record(ref)
    if not r then
      redis.call('ZREM', LEDGER, tag)                   -- its record outlived its time; the audit does the rest
      freed = freed + 1
    elseif r[VERSION] <= SCHEMA then                    -- a newer worker's goes back when its lease ends
      local begun = leave(tag, r)
      forget(ref, r)
      after(r[LANE], begun)
      freed = freed + 1
    end
  end
end
overdue()
return freed
