-- How a call is released: into the ready list and the ledger, in one step.

-- Puts a call into the ready list of its crew and into the ledger, with or without a permit.
-- call: {ref, r, crew, message: its text; new: message and record are not stored yet}
local function give(call)
  local ref, r, c = call.ref, call.r, call.crew
  r[RELEASE] = batch.number()
  r[BORN] = math.min(r[BORN], r[RELEASE] - 1)
  local tag = ref .. '.' .. int(r[RELEASE])
  r[CLAIM], r[DEGRADES], r[PARENTS] = r[CLAIM] or false, r[DEGRADES] or false, r[PARENTS] or false  -- no holes
  r[MONEY], r[RESERVED] = r[MONEY] or false, r[RESERVED] or false
  r[CREW] = c[1]
  if c[3] then c[3] = c[3] - 1 end
  ledger.enter(tag, r)
  if r[LOST] > 0 then suspect.mark(ref, r, true) end
  keep(ref, r, call.new and call.message)
  batch.put('LPUSH', crew.list_of(r), text_of(ref, r, tag, call.message))
end
-- Releases a call from its lane with a permit.
local function let_go(S, call)
  local L, r = S.L, call.r
  if not call.new then
    batch.leave(L, call.queue, call.ref)
    batch.put('ZREM', EXPIRY, call.ref)
  end
  spend(L, r[COST])
  -- + 1, so that calls which arrive later are behind this one even if it comes back (equal tags are ordered by name)
  L.v = math.max(L.v, r[SCORE] - band(r[CLASS]) + 1)
  r[PERMIT], r[TICKET] = TAKEN, {L.seq, now, L.c[1], L.c[2], L.c[3], L.c[4]}
  if L.parents then
    r[PARENTS] = L.names
    turns.take(L, r[COST])
  end
  purse.reserve(call.purses, r)
  give(call)
  if probes.on(L) then probes.went(L, call.queue, call.message) end
  if call.left then budget.pay(L, call.left) end
  S.moved = S.moved + 1
  S.room[call.queue] = S.room[call.queue] - 1
  if #S.queues > 1 then S.room = {} end                -- queues share slots: count again
end
