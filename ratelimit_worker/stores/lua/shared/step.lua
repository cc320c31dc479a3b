-- One step of a lane, from its first look to its parking: a table S that choose, bar, let_go and park hand on.

local step = {}
-- L: the lane (bucket.lua) · queues: on which its calls wait · own: see own_room · room: by queue, how many calls may go there,
-- 'empty' if none waits there · early: calls that may go before a slot is free · moved: calls released so far · most: calls
-- that may be released · set_by: calls parked so far · greedy: no other lane wants the slots · served: the parent whose row is
-- being served ·
-- rows: parents in whose rows the lane stands · at: when the pump has to look at the lane again, µs (nil: not at all)
function step.of(L, queues, most, greedy, served)
  return {L = L, queues = queues, own = own_room(L, queues[1]), room = {}, early = (not L.unlimited or L.parents) and ahead(L) or 0,
    moved = 0, most = most, set_by = 0, greedy = greedy, served = served, rows = {}}
end
function step.room(S, queue)
  if not S.room[queue] or S.room[queue] == 'empty' then S.room[queue] = room(S.L, queue, S.own.out + S.moved, S.greedy, S.most) end
  return S.room[queue]
end
function step.soon(S, at) S.at = math.min(S.at or 1e18, at) end
