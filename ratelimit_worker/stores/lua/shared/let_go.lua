-- How a call goes out: with a permit into the ready list and the ledger, in one step.

-- Into the ready list of its crew and the ledger in one step.
-- call: {ref, r, crew, message: its text; new: it is stored with the record}
local function give(call)
  local ref, r, c = call.ref, call.r, call.crew
  r[RELEASE] = count('released')
  r[BORN] = math.min(r[BORN], r[RELEASE] - 1)
  local tag = ref .. '.' .. int(r[RELEASE])
  r[CLAIM], r[DEGRADES], r[PARENTS] = r[CLAIM] or false, r[DEGRADES] or false, r[PARENTS] or false  -- no holes
  r[CREW] = c[1]
  if c[3] then c[3] = c[3] - 1 end
  ledger.enter(tag, r)
  if r[LOST] > 0 then suspect.mark(ref, r, true) end
  keep(ref, r, call.new and call.message)
  redis.call('LPUSH', crew.list_of(r), text_of(ref, r, tag, call.message))
end
-- Out of the lane with a permit: the last of three answers of a release.
local function let_go(S, call)
  local L, r = S.L, call.r
  if not call.new then
    census.change(call.queue, -redis.call('ZREM', wait_key(L.name, call.queue), call.ref))
    redis.call('ZREM', EXPIRY, call.ref)
  end
  spend(L, r[COST])
  -- one behind it: what comes later has a later place, also when this one comes back (ties go by name, not by time)
  L.v = math.max(L.v, r[SCORE] - band(r[CLASS]) + 1)
  r[PERMIT], r[TICKET] = TAKEN, {L.seq, now, L.c[1], L.c[2], L.c[3], L.c[4]}
  if L.parents then
    r[PARENTS] = L.names
    turns.take(L, r[COST])
  end
  give(call)
  if probes.on(L) then probes.went(L, call.queue, call.message) end
  if call.left then budget.pay(L, call.left) end
  S.moved = S.moved + 1
  S.room[call.queue] = S.room[call.queue] - 1
  if #S.queues > 1 then S.room = {} end                -- queues share slots: count again
end
