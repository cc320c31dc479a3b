-- A released call goes back into its lane: to its own place (429, closed lane) or to a time (backoff). O(log waiting).
-- ARGV  now µs · tag · due in µs (0: its own place) · tries that the attempt costs · outbox entry · verdict · observation ·
--       gate µs · lane · failure that cost a try ('': none; see fared.fare) · the failure, packed ('': none), which begin.lua
--       returns should the call expire · 1: the answer was sick, or the quota is used up · what the attempt cost, billionths of a dollar
-- returns  1 it went back | 0 the call is not this worker's any more
local tag = ARGV[2]
local ref, n = split(tag)
local r = record(ref)
if r and r[VERSION] > SCHEMA then r = nil end
local spent = r and n > r[BORN] and r or nil             -- else it answers an earlier call with the same task id
learn(ARGV[9], ARGV[6], ARGV[7], ARGV[5], tonumber(ARGV[8]), spent, ARGV[10])
doubt(ARGV[9], ARGV[6], spent and spent[COST] or NOTHING)
if not r or not redis.call('ZSCORE', LEDGER, tag) then return 0 end
r[ATTEMPTS] = r[ATTEMPTS] + tonumber(ARGV[4])
suspect.clear(ref, r)
r[LOST], r[RESTORED] = 0, 0                             -- its worker has survived it, so it is no suspect
if ARGV[12] == '1' then failing.more(ref, r) else failing.ends(ref, r) end
if r[PERMIT] == USED then purse.settle(r, tonumber(ARGV[13])) end
local due = tonumber(ARGV[3])
go_back(ref, tag, r, due > 0 and now + due or 0)
if ARGV[11] ~= '' then redis.call('HSET', call_key(ref), 'w', ARGV[11]) end
release(r[LANE], 1)
feed(1)
return 1
