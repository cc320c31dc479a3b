-- Take a waiting call out of its lane for good. O(log waiting).
-- ARGV  now µs · task id
-- returns  {message, body} of each that was taken …
local taken = {}
for i = 0, 3 do
  local ref = i == 0 and ARGV[2] or ARGV[2] .. '~' .. i
  local r = record(ref)
  if r and redis.call('ZREM', wait_key(r[LANE], r[QUEUE]), ref) + redis.call('ZREM', key('due:') .. r[LANE], ref) > 0 then
    taken[#taken + 1] = redis.call('HGET', call_key(ref), 'm')
    taken[#taken + 1] = redis.call('GET', key('payload:') .. ref) or ''
    forget(ref)
    count('revoked')
  end
end
return taken
