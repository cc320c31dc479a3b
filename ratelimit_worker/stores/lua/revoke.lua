-- Take a waiting call out of its lane for good. O(log waiting).
-- ARGV  now µs · task id
-- returns  {message, body} of each that was taken …
local taken = {}
for i = 0, KNOWN.REFS - 1 do
  local ref = i == 0 and ARGV[2] or ARGV[2] .. '~' .. i
  local r = record(ref)
  if r and r[VERSION] <= SCHEMA and unwait(ref, r) > 0 then
    taken[#taken + 1] = redis.call('HGET', call_key(ref), 'm')
    taken[#taken + 1] = redis.call('GET', key('payload:') .. ref) or ''
    forget(ref, r, true)
    count('revoked')
    release(r[LANE], 1)                                 -- the next call may cost less
    if redis.call('EXISTS', queues_key(r[LANE])) == 0 then redis.call('DEL', key('tenants:') .. r[LANE]) end
  end
end
return taken
