-- Celery acknowledged a message: the call's stay in the ledger ends, its slot is free. O(log waiting).
-- ARGV  now µs · tag …
-- returns  how many were still in the ledger
local freed = 0
for i = 2, #ARGV do
  local tag = ARGV[i]
  if redis.call('ZREM', key('ledger'), tag) == 1 then
    local ref = split(tag)
    local r = record(ref)
    if r then
      leave(tag, r)
      if r[STARTED] == 0 then                           -- revoked or expired before it ran: its permit was not used
        local L = load(r[LANE]); refund(L, r[COST]); save(L)
      end
      forget(ref)
      freed = freed + 1
      feed()
    end
  end
end
overdue()
return freed
