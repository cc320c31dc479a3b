-- Make the outcome of a call safe, before Celery stores it: answer, outbox, observation, gate. O(1).
-- The first answer wins; a call that is delivered again gets it and sends nothing.
-- ARGV  now µs · tag · answer ('': none to keep) · outbox entry ('': none) · verdict · observation ('': none) · gate µs · lane · keep answer ms
-- returns  1 settled now | 0 was settled before, or the call is gone
local ref = split(ARGV[2])
local r = record(ref)
local cost = r and r[COST] or {0, 0, 0, 0}
learn(ARGV[8], ARGV[5], ARGV[6], ARGV[4], tonumber(ARGV[7]), cost)
if not r or ARGV[3] == '' then return 0 end           -- no answer: an outcome that Celery alone keeps
if not redis.call('SET', key('settled:') .. ref, ARGV[3], 'NX', 'PX', ARGV[9]) then return 0 end
return 1
