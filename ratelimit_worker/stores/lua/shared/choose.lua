-- Who is next: the first question of a release.

-- -> the call: {ref, queue, r, message, cost, task; left: the retry budget, where that lets it go before others}; {}: no queue of
-- those that wait has room; nil: none waits. Of a lane that may send no more it is only said that one waits: no more is looked up.
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
