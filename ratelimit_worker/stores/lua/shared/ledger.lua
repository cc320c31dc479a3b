-- The way out of the ledger.

-- The call is no longer out -> whether it was in the ledger, and whether it had begun. A permit that no start has used
-- goes back, here and nowhere else.
local function leave(tag, r)
  local out = out_key(r[LANE])
  local there = redis.call('ZREM', LEDGER, tag) == 1
  redis.call('ZREM', out, tag)
  redis.call('SREM', crew.taken_key(r), tag)
  r[CREW] = nil
  if aside() > 0 and redis.call('SREM', ASIDE, tag) == 1 then memo[ASIDE_N] = nil end
  local parents = r[PARENTS]
  for i = 1, parents and #parents or 0 do redis.call('ZREM', out_key(parents[i]), tag) end
  if not there then return false end
  if r[LOST] > 0 then suspect.back((split(tag))) end
  if r[PERMIT] == TAKEN then
    local L = load(r[LANE], parents or {})
    refund(L, r[COST], r[TICKET][2])
    save(L)
    -- the next may have waited for that permit: its time was planned without it
    if redis.call('ZSCORE', NEXT, r[LANE]) then note(r[LANE], now) end
  end
  for i = 1, parents and #parents or 0 do wake(parents[i]) end
  r[PARENTS] = nil
  local begun = r[PERMIT] == USED
  r[PERMIT] = NONE
  return true, begun
end
-- n of the lane's calls are out no more (begun: all of them had begun): the lane may have waited for that
local function after(lane, n, begun)
  local awaits = redis.call('HGET', FULL, lane)
  if awaits == 'ends' or (awaits and not begun) then release(lane, n) end
end
