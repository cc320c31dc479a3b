-- A worker is about to run a released call: may it, with what, and for which time? Twice the same is once. O(log out).
-- ARGV  now µs · tag · lease µs · 1: nothing else runs in its process · the process ('': its calls die with it, so that it
--       is nobody's company) · 1: another has the process for itself
-- returns  {state, …}: 'go', body, tries, number, deadline µs, waited since µs, now µs, ticket packed, its sick answers in a
--          row packed ('': none; see failing), attempts at it that ended with their worker,
--          µs to wait before it is sent
--          'settled', answer, body · 'closed' (it went back into its lane) ·
--          'expired', body, number, waited since µs, now µs, what failed it last packed ('': nothing) ·
--          'poison', lost, body, number, now µs · 'alone' (its last delivery: ask again when nothing else runs) · 'stale' (another's by now) · 'gone' (Redis has lost it)
local tag = ARGV[2]
local ref, n = split(tag)
local r = record(ref)
if r and r[VERSION] > SCHEMA then return {'stale'} end -- a newer worker's; its lease gives it back
-- Renewed and looked up in one; a lease that is as it was (the clock stood still) counts as no change.
if redis.call('ZADD', LEDGER, 'XX', 'CH', int(now + tonumber(ARGV[3])), tag) == 0 and not redis.call('ZSCORE', LEDGER, tag) then
  return {n > released() and 'gone' or 'stale'}         -- a number that was never given out: the memory was lost
end
if not r then return {'gone'} end

local function closed()                                -- it is back in its lane, and has used no attempt
  release(r[LANE], 1)
  feed(1)
  return {'closed'}
end
local function leave_to_another()                      -- process, or to this one later
  local since = r[SINCE]
  suspect.waits(ref)                                   -- which wakes nobody, or they would take turns without an end
  go_back(ref, tag, r, now + suspect.PAUSE_US)
  r[SINCE] = since
  keep(ref, r)
  return closed()
end
local function lane_is_shut()                          -- since the release
  if r[PERMIT] == NONE then return true end
  local closed, unbound, known = shut(r[LANE])
  if closed then return true, unbound end
  for i = 1, r[PARENTS] and #r[PARENTS] or 0 do
    if shut(r[PARENTS][i]) then return true end
  end
  return false, unbound, known
end

local answer, body = unpack(redis.call('MGET', key('settled:') .. ref, key('payload:') .. ref))
if answer then return {'settled', answer, body or ''} end
if now >= r[DEADLINE] then
  return {'expired', body or '', r[NUMBER], int(r[SINCE]), int(now), redis.call('HGET', call_key(ref), 'w') or ''}
end
if r[LOST] >= suspect.MOST_LOST then return {'poison', r[LOST], body or '', r[NUMBER], int(now)} end
if r[PERMIT] ~= USED and (ARGV[6] == '1' or (ARGV[4] ~= '1' and suspect.elsewhere(ref, r, ARGV[5]))) then
  return leave_to_another()
end
suspect.sits(ref, r, ARGV[5])
-- The loss after which it is given up must be its own: beside others, it might be another's.
if suspect.last(r) and ARGV[4] ~= '1' then return {'alone'} end
if not body then return {'gone'} end
local failed, unbound, pause = failing.of(ref, r), false, 0
if r[PERMIT] ~= USED then
  local is_shut, known
  is_shut, unbound, known = lane_is_shut()
  if is_shut then
    go_back(ref, tag, r, 0)
    return closed()
  end
  r[PERMIT] = USED
  r[NUMBER] = r[NUMBER] + 1
  keep(ref, r)
  set_begun(tag, r)
  pause = wait_us(r[LANE], known, r[COST][1])
end
if not unbound and full.of(r[LANE]) == 'begins' then release(r[LANE], 2) end
return {'go', body, r[ATTEMPTS], r[NUMBER], int(r[DEADLINE]), int(r[SINCE]), int(now), cmsgpack.pack(r[TICKET]),
  failed or '', r[LOST], int(pause)}
