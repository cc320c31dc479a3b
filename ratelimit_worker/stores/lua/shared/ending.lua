-- How a call ends: its outcome is made safe, its stay in the ledger is over.

local ending = {}
-- A: of settle.lua. The answer is kept until its call is freed, unless that follows in the same step (frees).
-- returns  1 settled now | 0 was settled before, or the call is gone; its record, nil: it has none; whether it is freed next
function ending.settle(A, frees)
  local ref, n = split(A[2])
  local r = record(ref)
  if r and (r[VERSION] > SCHEMA or n <= r[BORN]) then r = nil end  -- the answer of a life before, under the same task id
  local out, settled = r and n == r[RELEASE] and r[PERMIT] == USED, 0
  frees = frees and out and redis.call('ZSCORE', LEDGER, A[2])
  if r and A[3] ~= '' then
    local ms = math.max(tonumber(A[9]), ttl_of(r) * 1000)
    if frees or redis.call('SET', key('settled:') .. ref, A[3], 'NX', 'PX', int(ms)) then
      settled = 1
      if r[CLAIM] then share(ref, r, A[10], A[3], {A[13], A[14]}) end
      if not out then                                  -- it was taken for dead, and waits or runs again
        redis.call('ZADD', EXPIRY, int(now), ref)
        plan(now)
      end
    end
  end
  learn(A[8], A[5], A[6], A[4], tonumber(A[7]), r, A[12])
  if out and A[11] ~= '' and reconcile(ref, r, cmsgpack.unpack(A[11])) then
    release(r[LANE], 1)                                -- what was given back may be what it waits for
  end
  return settled, r, frees
end
-- The call's stay in the ledger is over -> whether it was there, and whether it had begun. The caller releases.
function ending.free(tag, ref, r)
  local there, had_begun = ledger.leave(tag, r)
  if there then forget(ref, r) end
  return there, had_begun
end
