-- Make the outcome of a call safe, before Celery stores it: answer, cache, followers, outbox, observation, gate.
-- O(followers).
-- The first answer wins; a call that is delivered again gets it and sends nothing, and needs no permit for that.
-- ARGV  now µs · tag · answer ('': none to keep) · outbox entry ('': none) · verdict · observation ('': none) · gate µs · lane · keep answer ms ·
--       what the answer is: value, short, error, passed, or alone (see share) · tokens that it really took ('': see reconcile) ·
--       a failure that cost a try ('': none, see fare) · what asking again costs, and the answer packed ('': as it is): see cache
-- returns  1 settled now | 0 was settled before, or the call is gone
local ref, n = split(ARGV[2])
local r = record(ref)
if r and (r[VERSION] > SCHEMA or n <= r[BORN]) then r = nil end  -- the answer of a life before, under the same task id
local settled = 0
if r and ARGV[3] ~= '' then
  local ms = math.max(tonumber(ARGV[9]), ttl_of(r) * 1000)
  if redis.call('SET', key('settled:') .. ref, ARGV[3], 'NX', 'PX', int(ms)) then
    settled = 1
    if r[CLAIM] then share(ref, r, ARGV[10], ARGV[3], {ARGV[13], ARGV[14]}) end
    if n ~= r[RELEASE] or r[PERMIT] ~= USED then       -- it was taken for dead, and waits or runs again
      redis.call('ZADD', EXPIRY, int(now), ref)
      plan(now)
    end
  end
end
learn(ARGV[8], ARGV[5], ARGV[6], ARGV[4], tonumber(ARGV[7]), r, ARGV[12])
if r and ARGV[11] ~= '' and n == r[RELEASE] and r[PERMIT] == USED and reconcile(ref, r, cmsgpack.unpack(ARGV[11])) then
  release(r[LANE], 1)                                  -- what was given back may be what it waits for
end
return settled
