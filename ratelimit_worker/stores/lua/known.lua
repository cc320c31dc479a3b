-- Which of these calls does Redis know: waiting, out, or ended within the hour? One that has lost its place in its lane, or its
-- leader, gets its place again. O(calls · log waiting).
-- ARGV  now µs · call id …
-- returns  {1 known | 0 not, of each}
local function lead_by_itself(ref, r)
  redis.call('ZREM', followers_key(r[CLAIM]), ref)
  lead(ref, r)
end
local found = {}
for i = 2, #ARGV do
  local ref = ARGV[i]
  local again = ref .. '~1'
  found[i - 1] = redis.call('EXISTS', call_key(ref), key('done:') .. ref, call_key(again), key('done:') .. again) > 0 and 1 or 0
  local r = found[i - 1] == 1 and record(ref)
  if r and r[VERSION] <= SCHEMA and not redis.call('ZSCORE', LEDGER, ref .. '.' .. int(r[RELEASE])) then
    local follows = r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref)
    local orphan = follows and not record(redis.call('GET', claim_key(r[CLAIM])) or '')
    if orphan then lead_by_itself(ref, r) end
    if (orphan or not waits(ref, r)) and redis.call('EXISTS', key('settled:') .. ref) == 0 then
      if r[SCORE] < 0 then place(load(r[LANE]), r) end
      r[SINCE] = now
      keep(ref, r)
      wait(ref, r, failing.behind(ref, r))
      redis.call('ZADD', EXPIRY, whole(r[DEADLINE]), ref)
      note(r[LANE], now)
      count('replaced')
    end
  end
end
return found
