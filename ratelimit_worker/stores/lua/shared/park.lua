-- Where a lane or a call waits, so that the end of its bar wakes it: the third question of a release.

-- The row of a queue: lanes with a permit that found no slot there, in the order in which they are to be asked.
local row = {}
function row.enrol(lane, queue)
  if redis.call('ZSCORE', row_key(queue), lane) then return end
  redis.call('SADD', HUNGRY, queue)
  redis.call('ZADD', row_key(queue), redis.call('HINCRBY', PUMP, 'row', 1), lane)
end
function row.strike(lane, queue)
  if redis.call('ZREM', row_key(queue), lane) == 1 and redis.call('EXISTS', row_key(queue)) == 0 then
    redis.call('SREM', HUNGRY, queue)
  end
end
function row.back(lane, queue)                         -- it was asked, and may come again when the others have been
  redis.call('ZADD', row_key(queue), 'XX', redis.call('HINCRBY', PUMP, 'row', 1), lane)
end

-- What a full lane waits for: that one of its calls begins, or ends.
local full = {}
function full.of(lane)                                 -- false: it is not full
  if memo.full[lane] == nil then memo.full[lane] = redis.call('HGET', FULL, lane) end
  return memo.full[lane]
end
function full.set(lane, event)                         -- nil: it is not
  if event then
    redis.call('HSET', FULL, lane, event)
  elseif memo.full[lane] ~= false then
    redis.call('HDEL', FULL, lane)
  end
  memo.full[lane] = event or false
end

local parking = {}
-- The call alone: it leaves the front of its lane, where it would keep others from going.
function parking.call(S, call, held)
  if held.kind == 'newer' then
    S.room[call.queue] = 0                             -- it stays, with all behind it on its queue
  else
    census.change(call.queue, -redis.call('ZREM', wait_key(S.L.name, call.queue), call.ref))
  end
  local at = held.at
  if held.kind == 'task' then
    S.set_by = S.set_by + 1
    at = crew.park(call.ref, call.r, call.task, held.known)
  elseif held.kind == 'suspect' then
    wait_until(at, call.ref, call.r)
  end
  if at then step.soon(S, at) end
end
-- In the rows of the parents that bar it, or in which its next turn comes when it is the first again; nowhere else: whoever
-- waits for something else holds up nobody there.
function parking.in_turns(S, held)
  local L = S.L
  if held.kind == 'parent' then
    S.rows = turns.await(L, held.cost, held.waits)
  elseif held.kind == 'share' and L.parents then
    for _, P in ipairs(L.parents) do
      if not S.served or P.name == S.served then       -- who serves a row goes on with it
        turns.stand(P, L.name, not S.served and now)
        S.rows[P.name] = true
      end
    end
  end
  for i = 1, L.parents and #L.parents or 0 do
    local name = L.parents[i].name
    if not S.rows[name] and turns.go(name, L.name) and name ~= S.served then wake(name) end
  end
end
-- Whether the lane has a permit for its next call on a queue that has no slot: it stands in the row. Else its time is noted.
function parking.hungry(S, queue)
  local L = S.L
  local head = next(L.p) and (budget.first(L, {queue}, {[queue] = 1}) or head_of(L, queue))
  local r = head and record(head)
  if head and not r then
    census.change(queue, -redis.call('ZREM', wait_key(L.name, queue), head))  -- its record outlived its time
    step.soon(S, now)
    return false
  end
  if r and r[VERSION] > SCHEMA then return false end
  local held = bars.budget(L, r and r[COST] or NOTHING)
  if held then
    if held.at then step.soon(S, held.at) end
    return false
  end
  -- Slots of an older version are its pump's to fill: the lane stays due until that has looked at it.
  local _, _, _, older = slots(queue)
  if older > 0 then step.soon(S, math.min(now, tonumber(redis.call('ZSCORE', NEXT, L.name) or now))) end
  return true
end
-- In the row of each queue without a slot for it, if a slot is all that it lacks there.
function parking.in_rows(S, may)
  local anybody = redis.call('EXISTS', HUNGRY) == 1
  for _, q in ipairs(S.queues) do
    local free = S.room[q]
    if may and free and free ~= 'empty' and free <= 0 and parking.hungry(S, q) then
      row.enrol(S.L.name, q)
    elseif anybody then
      row.strike(S.L.name, q)
    end
  end
end
-- The lane, with all that waits in it:
--   begins, width, concurrency, lent  `full`: one of its own calls begins or ends
--   slots                             `hungry:Q`: the next free slot
--   gate, pace, quota                 `next`: the pump looks at that time; closed: nowhere, new set-points release it
--   parent                            `turns:P`: the parent's row is served
--   share                             `next`, at once, or the parents' rows
function parking.lane(S, held)
  local L = S.L
  if S.moved > 0 then save(L) end
  if held.at then step.soon(S, held.at) end
  if held.kind == 'share' and not L.parents then step.soon(S, now) end
  parking.in_turns(S, held)
  -- asked anew where calls went: they have to begin first
  full.set(L.name, held.event and (S.moved > 0 and own_room(L).event or held.event))
  parking.in_rows(S, not held.event and not held.closed)
  note(L.name, S.at)
end
local function park(S, call, held)
  if held.alone then parking.call(S, call, held) else parking.lane(S, held) end
end
