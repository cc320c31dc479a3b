-- The end of a call that was answered, in one step: its result where Celery looks for it, all that settle does, and its stay
-- in the ledger, where nothing but that is left to do for it. O(followers + log waiting).
-- ARGV  now µs · as settle · then: name of the result · the result · how long it is kept, s (0: for good) ·
--       1: free the call too (0: its message is acknowledged later)
-- returns  {as settle, 1: it is freed, and its message needs no ack | 0}
local name, result, expires = ARGV[16], ARGV[17], tonumber(ARGV[18])
-- First, for it is the one thing here that a server may refuse this user: then nothing has happened.
if expires > 0 then redis.call('SET', name, result, 'EX', int(expires)) else redis.call('SET', name, result) end
redis.call('PUBLISH', name, result)
local settled, r, frees = ending.settle(ARGV, ARGV[19] == '1')
if not frees then return {settled, 0} end
local lane = r[LANE]
local _, begun = ending.free(ARGV[2], (split(ARGV[2])), r)
after(lane, 1, begun)
feed(1)
overdue()
return {settled, 1}
