-- A caller that makes its attempt itself puts its call into its lane. If the call is released at once, it begins in the same
-- step, so that neither reading its message nor beginning it needs an exchange of its own. O(log waiting).
-- ARGV  now µs · lease µs · as enqueue after the time
-- returns  as enqueue; for a call that is out by then {state, ref, tag, as begin …}
local lease_us, queue, message = table.remove(ARGV, 2), ARGV[3], ARGV[18]
local placed = scripts.enqueue()
local ref = placed[2]
if placed[1] ~= 1 and placed[1] ~= 2 then return placed end
local r = record(ref)
local tag = r and r[QUEUE] == queue and ref .. '.' .. int(r[RELEASE])
if not tag or not redis.call('ZSCORE', LEDGER, tag) then return placed end
-- Its own message: it is the newest of the list, or was there already (2: the answer to this caller was lost).
redis.call('LREM', crew.list_of(r), 1, text_of(ref, r, tag, message))
ARGV = {ARGV[1], tag, lease_us, '1', '', '0'}
return {placed[1], ref, tag, unpack(scripts.begin())}
