-- Who is next: the first question of a release.

-- -> the call: {ref, queue, r, message, cost, task; left: the retry budget, if that is why it goes first}; {}: calls wait, but no
-- queue of theirs has room; nil: none waits. If the lane may have no more calls out, only ref, queue and tag are looked up.
local function choose(S)
  local call = first_of(S)
  if not call or not call.ref or (S.moved >= S.own.free and not asking) then return call end
  if probes.on(S.L) then
    call.ref, call.queue = probes.choose(S, call.ref, call.queue)
  elseif call.tag < BEHIND then
    local retry, queue, left = budget.first(S.L, S.queues, S.room)
    if retry then call.ref, call.queue, call.left = retry, queue, left end
  end
  local r, message = record_and_message(call.ref)
  if r then
    call.r, call.message, call.cost, call.task = r, message, r[COST], crew.task_of(message)
  end
  return call
end
