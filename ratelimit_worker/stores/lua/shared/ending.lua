-- How a call ends: its outcome is made safe (settle), and it leaves the ledger (free).

local ending = {}
-- A: the arguments of settle.lua. The answer is kept until the call is freed, unless it is freed in the same step (frees).
-- -> 1 settled now | 0 it was settled before, or the call is gone; its record, or nil; whether the caller has to free it next
function ending.settle(A, frees)
  local ref, n = split(A[2])
  local r = record(ref)
  if r and (r[VERSION] > SCHEMA or n <= r[BORN]) then r = nil end  -- an answer to an earlier call with the same task id
  local out, settled = r and n == r[RELEASE] and r[PERMIT] == USED, 0
  frees = frees and out and ledger.strike(A[2])
  if r and A[3] ~= '' then
    local ms = math.max(tonumber(A[9]), ttl_of(r) * 1000)
    if frees or redis.call('SET', key('settled:') .. ref, A[3], 'NX', 'PX', whole(ms)) then
      settled = 1
      if r[CLAIM] then share(ref, r, A[10], A[3], {A[13], A[14], A[15], A[17], A[18]}) end
      if not out then                                  -- its worker was taken for dead, so it waits or runs again
        redis.call('ZADD', EXPIRY, whole(now), ref)
        plan(now)
      end
    end
  end
  learn(A[8], A[5], A[6], A[4], tonumber(A[7]), r, A[12])
  if out and r[RESERVED] then                          -- before others are asked who may go
    purse.settle(r, tonumber(A[16]))
    keep(ref, r)
  end
  if out and A[11] ~= '' and reconcile(ref, r, cmsgpack.unpack(A[11])) then
    release(r[LANE], 1)                                -- the lane may have waited for the units that were given back
  end
  return settled, r, frees
end
-- The call leaves the ledger -> whether it was there, and whether it had begun. The caller must call release.
-- struck: as ledger.leave has it
function ending.free(tag, ref, r, struck)
  local there, had_begun = ledger.leave(tag, r, struck)
  if there then forget(ref, r) end
  return there, had_begun
end
