-- A worker is about to run a released call and asks whether it may. Asking again changes nothing more. O(log out).
-- ARGV  now µs · tag · lease µs · 1: nothing else runs in its process · the process ('': one call each, so suspects never
--       share it) · 1: another call has the process for itself
-- returns  {state, …}:
--          'go', body, tries, number, deadline µs, waited since µs, now µs, ticket packed, its sick answers in a row packed
--            ('': none; see failing), attempts at it that ended with their worker, µs to wait before it is sent ·
--          'settled', answer, body: it has its answer already · 'closed': it went back into its lane ·
--          'expired', body, number, waited since µs, now µs, its last failure packed ('': none) ·
--          'poison', lost, body, number, now µs: it is given up, since its workers died ·
--          'alone': one more loss and it is given up, so ask again when nothing else runs ·
--          'superseded': another delivery has it by now · 'gone': Redis has lost it
local function closed(r)                               -- it is back in its lane, and has used no attempt
  release(r[LANE], 1)
  feed(1)
  return {'closed'}
end
local function leave_to_another(ref, tag, r)           -- to another process, or to this one later
  local since = r[SINCE]
  suspect.waits(ref)                                   -- wakes no other suspect, or two would take turns for ever
  go_back(ref, tag, r, now + suspect.PAUSE_US)
  r[SINCE] = since
  keep(ref, r)
  return closed(r)
end
local function lane_is_shut(r)                         -- whether lane or parents were closed since the release
  if r[PERMIT] == NONE then return true end
  local closed, unbound, known = shut(r[LANE])
  if closed then return true, unbound end
  for i = 1, r[PARENTS] and #r[PARENTS] or 0 do
    if shut(r[PARENTS][i]) then return true end
  end
  return false, unbound, known
end
-- Whether the call is out under this tag; then its lease is renewed, in the same command. CH does not count a lease that stays the
-- same, so ZSCORE is asked as well.
local function is_out(tag, lease)
  return redis.call('ZADD', LEDGER, 'XX', 'CH', whole(now + lease), tag) == 1 or redis.call('ZSCORE', LEDGER, tag) ~= false
end
-- What its worker is told if there is nothing to run; nil: it may run
local function over(ref, r, answer, body)
  if answer then return {'settled', answer, body or ''} end
  if now >= r[DEADLINE] then
    return {'expired', body or '', r[NUMBER], whole(r[SINCE]), whole(now), redis.call('HGET', call_key(ref), 'w') or ''}
  end
  if r[LOST] >= suspect.MOST_LOST then return {'poison', r[LOST], body or '', r[NUMBER], whole(now)} end
end

function scripts.begin()
  local tag = ARGV[2]
  local ref, n = split(tag)
  local r = record(ref)
  if r and r[VERSION] > SCHEMA then return {'superseded'} end  -- a newer version's; it goes back when its lease ends
  if not is_out(tag, tonumber(ARGV[3])) then
    local last = tonumber(redis.call('HGET', key('counters'), 'released') or '0')
    return {n > last and 'gone' or 'superseded'}       -- a number that was never given out: Redis has lost its data
  end
  if not r then return {'gone'} end
  local kept = redis.call('MGET', key('settled:') .. ref, key('payload:') .. ref)
  local body = kept[2]
  local ended = over(ref, r, kept[1], body)
  if ended then return ended end
  if r[PERMIT] ~= USED and (ARGV[6] == '1' or (ARGV[4] ~= '1' and suspect.elsewhere(ref, r, ARGV[5]))) then
    return leave_to_another(ref, tag, r)
  end
  suspect.sits(ref, r, ARGV[5])
  -- One more loss and it is given up. So it runs alone: beside others, the next loss might be caused by another call.
  if suspect.last(r) and ARGV[4] ~= '1' then return {'alone'} end
  if not body then return {'gone'} end
  local failed, unbound, pause = failing.of(ref, r), false, 0
  if r[PERMIT] ~= USED then
    local is_shut, known
    is_shut, unbound, known = lane_is_shut(r)
    if is_shut then
      go_back(ref, tag, r, 0)
      return closed(r)
    end
    r[PERMIT], r[NUMBER] = USED, r[NUMBER] + 1
    keep(ref, r)
    set_begun(tag, r)
    pause = bars.pause_us(r[LANE], known, r[COST][1])
  end
  if not unbound and full.of(r[LANE]) == 'begins' then release(r[LANE], 2) end
  return {'go', body, r[ATTEMPTS], r[NUMBER], whole(r[DEADLINE]), whole(r[SINCE]), whole(now), cmsgpack.pack(r[TICKET]),
    failed or '', r[LOST], whole(pause)}
end
