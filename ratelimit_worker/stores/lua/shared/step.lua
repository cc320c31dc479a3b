-- One step of a lane: what was found in it, and what has gone. choose, bar, let_go and park (the next files) pass it on.

local step = {}
-- L: its budgets · queues: on which its calls wait · own: see own_room · room: by queue, how many may go there, 'empty' where
-- none waits · early: calls that may go before a slot is free · moved: calls that went · most: as many may · set_by: calls that
-- left the front · greedy: nobody else wants the slots · served: the parent whose turn it is to be asked · rows: parents in
-- whose rows it stands · at: when the pump has to look at it again, µs (nil: it need not)
function step.of(L, queues, most, greedy, served)
  return {L = L, queues = queues, own = own_room(L), room = {}, early = (not L.unlimited or L.parents) and ahead(L) or 0,
    moved = 0, most = most, set_by = 0, greedy = greedy, served = served, rows = {}}
end
function step.room(S, queue)
  if not S.room[queue] or S.room[queue] == 'empty' then S.room[queue] = room(S.L, queue, S.own.out + S.moved, S.greedy) end
  return S.room[queue]
end
function step.soon(S, at) S.at = math.min(S.at or 1e18, at) end
