-- End a call in one step: store its result where Celery looks for it, settle it, and free it if nothing but its ack is left to
-- do. O(followers + log waiting).
-- ARGV  now µs · arguments of settle · key of the result ('': it has none, and no message that is acknowledged: a call in
--       process) · the result · how long it is kept, s (0: for ever) · 1: free the call too (0: its message is acknowledged later)
-- returns  {as settle returns, 1: it is freed, and its message needs no ack | 0}
local name, result, expires = ARGV[19], ARGV[20], tonumber(ARGV[21])
-- The result first: it is the one write here that a server may refuse this user, and then nothing else has been done yet.
if name ~= '' then
  if expires > 0 then redis.call('SET', name, result, 'EX', whole(expires)) else redis.call('SET', name, result) end
  redis.call('PUBLISH', name, result)
end
local settled, r, frees = ending.settle(ARGV, ARGV[22] == '1')
if not frees and name == '' then                       -- no ack will come for this release
  ARGV = {ARGV[1], ARGV[2]}
  return {settled, scripts.free()}
end
if not frees then return {settled, 0} end
local lane = r[LANE]
local _, begun = ending.free(ARGV[2], (split(ARGV[2])), r, true)
after(lane, 1, begun)
feed(1)
overdue()
return {settled, 1}
