-- Celery has acknowledged messages: their calls leave the ledger, and their slots are free. O(log waiting) each.
-- ARGV  now µs · tag …
-- returns  how many were still in the ledger
local freed, ended, begun = 0, {}, {}
for i = 2, #ARGV do
  local tag = ARGV[i]
  local ref = split(tag)
  local r = record(ref)
  if not r then
    freed = freed + redis.call('ZREM', LEDGER, tag)     -- its record has expired; the sweep's audit does the rest
  elseif r[VERSION] <= SCHEMA then                      -- a newer version's goes back when its lease ends
    local there, had_begun = ending.free(tag, ref, r)
    if there then
      ended[r[LANE]], begun[r[LANE]] = (ended[r[LANE]] or 0) + 1, had_begun and begun[r[LANE]] ~= false
      freed = freed + 1
    end
  end
end
for lane, n in pairs(ended) do after(lane, n, begun[lane]) end
if freed > 0 then feed(freed) end
overdue()
return freed
