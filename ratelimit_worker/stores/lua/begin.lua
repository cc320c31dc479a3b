-- A worker is about to run a released call: may it, with what, and for which time? Twice the same is once. O(log out).
-- ARGV  now µs · tag · lease µs · deliveries lost at which to give up · 1: nothing else runs in its process
-- returns  {state, …}: 'go', body, tries, number, deadline µs, waited since µs, now µs, ticket packed
--          'settled', answer, body · 'closed' (it went back to its place) · 'expired', tries, body ·
--          'poison', lost, body, number, now µs · 'alone' (its last delivery: ask again when nothing else runs) · 'stale' (another's by now) · 'gone' (Redis has lost it)
local tag = ARGV[2]
local ref, n = split(tag)
if not redis.call('ZSCORE', LEDGER, tag) then
  return {n > released() and 'gone' or 'stale'}         -- a number that was never given out: the memory was lost
end
local r = record(ref)
if not r then return {'gone'} end
if r[VERSION] > SCHEMA then return {'stale'} end       -- a newer worker's; its lease gives it back
local answer, body = unpack(redis.call('MGET', key('settled:') .. ref, key('payload:') .. ref))
if answer then return {'settled', answer, body or ''} end
if now >= r[DEADLINE] then return {'expired', r[ATTEMPTS], body or ''} end
if r[LOST] >= tonumber(ARGV[4]) then return {'poison', r[LOST], body or '', r[NUMBER], int(now)} end
-- The loss after which it is given up must be its own: beside others, it might be another's.
if r[LOST] >= tonumber(ARGV[4]) - 1 and ARGV[5] ~= '1' then return {'alone'} end
if not body then return {'gone'} end
if r[PERMIT] ~= USED then
  -- the lane closed after the release: no attempt is used
  local h = redis.call('HMGET', lane_key(r[LANE]), 'gate', 'width', 'gap', 'unlimited', 'p1', 'p2', 'p3', 'p4')
  local width, closed = tonumber(h[2] or '0') or 0, r[PERMIT] == NONE
  if width > 0 then closed = closed or redis.call('ZCOUNT', out_key(r[LANE]), 1, 1) >= width end
  if width == 0 or (tonumber(h[3] or '0') or 0) == 0 then  -- else a probe's own release has set the gate
    closed = closed or (tonumber(h[1] or '0') or 0) > now
  end
  for i = 1, N do
    closed = closed or (h[4] ~= '1' and (tonumber(h[4 + i] or '1') or 1) <= 0)
  end
  if closed then
    go_back(ref, tag, r, 0)
    release(r[LANE], 1)
    feed(1)
    return {'closed'}
  end
  r[PERMIT] = USED
  r[NUMBER] = r[NUMBER] + 1
  keep(ref, r)
  redis.call('ZADD', out_key(r[LANE]), 'XX', 1, tag)
end
redis.call('ZADD', LEDGER, 'XX', int(now + tonumber(ARGV[3])), tag)
if redis.call('HGET', FULL, r[LANE]) == 'begins' then release(r[LANE], 2) end
return {'go', body, r[ATTEMPTS], r[NUMBER], int(r[DEADLINE]), int(r[SINCE]), int(now), cmsgpack.pack(r[TICKET])}
