-- A worker is about to run a released call: may it, with what, and for which time? O(1).
-- ARGV  now µs · tag · lease µs · deliveries lost at which to give up
-- returns  {state, …}: 'go', body, tries, number, deadline µs, accepted µs, waited-since µs, ticket packed
--          'settled', answer, body · 'closed' (it went back to its place) · 'expired', tries, body ·
--          'poison', lost, body · 'stale' · 'gone'
local tag = ARGV[2]
local ref, n = split(tag)
local r = record(ref)
if not r then return {'gone'} end
local answer = redis.call('GET', key('settled:') .. ref)
local body = redis.call('GET', key('payload:') .. ref)
if answer then return {'settled', answer, body or ''} end
if r[RELEASES] ~= n or not redis.call('ZSCORE', key('ledger'), tag) then return {'stale'} end
if now >= r[DEADLINE] then return {'expired', r[TRIES], body or ''} end
if r[LOST] >= tonumber(ARGV[4]) then return {'poison', r[LOST], body or ''} end
local gate, width = unpack(redis.call('HMGET', lane_key(r[LANE]), 'gate', 'width'))
if tonumber(gate or '0') > now and tonumber(width or '0') == 0 then  -- the gate closed after the release: no attempt is used
  local L = load(r[LANE]); refund(L, r[COST]); save(L)
  go_back(ref, tag, r, 0)
  release(r[LANE], 1)
  feed()
  return {'closed'}
end
if not body then return {'gone'} end
r[STARTED] = 1
r[NUMBER] = r[NUMBER] + 1
keep(ref, r)
redis.call('ZADD', key('ledger'), 'XX', int(now + tonumber(ARGV[3])), tag)
redis.call('ZADD', key('out:') .. r[LANE], 'XX', 1, tag)
if redis.call('ZSCORE', key('hungry'), r[LANE]) then release(r[LANE], 2) end
return {'go', body, r[TRIES], r[NUMBER], int(r[DEADLINE]), int(r[ACCEPTED]), int(now), cmsgpack.pack(r[TICKET])}
