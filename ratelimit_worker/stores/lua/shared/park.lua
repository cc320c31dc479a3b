-- Where a lane or a call waits, so that the end of its bar wakes it: the third question of a release.

-- The row of a queue: lanes whose next call has all but a slot there, in the order in which they will be asked.
local row = {}
function row.enrol(lane, queue)
  if memo.sole == row_key(queue) or redis.call('ZSCORE', row_key(queue), lane) then return end
  redis.call('SADD', HUNGRY, queue)
  redis.call('ZADD', row_key(queue), redis.call('HINCRBY', PUMP, 'row', 1), lane)
end
function row.strike(lane, queue)
  if redis.call('ZREM', row_key(queue), lane) == 1 and redis.call('EXISTS', row_key(queue)) == 0 then
    redis.call('SREM', HUNGRY, queue)
  end
end
function row.back(lane, queue)                         -- it was asked, and goes to the end of the row
  redis.call('ZADD', row_key(queue), 'XX', redis.call('HINCRBY', PUMP, 'row', 1), lane)
end

-- What a full lane waits for: 'begins' or 'ends', of one of its own calls.
local full = {}
function full.of(lane)                                 -- false: the lane is not full
  if memo.full[lane] == nil then memo.full[lane] = redis.call('HGET', FULL, lane) end
  return memo.full[lane]
end
function full.set(lane, event)                         -- event nil: the lane is not full
  if event then
    redis.call('HSET', FULL, lane, event)
  elseif memo.full[lane] ~= false then
    redis.call('HDEL', FULL, lane)
  end
  memo.full[lane] = event or false
end

local parking = {}
-- Parks the call only: it leaves the front of its lane, where it would keep the others from going.
function parking.call(S, call, held)
  if held.kind == 'newer' then
    S.room[call.queue] = 0                             -- it stays there, and so do all behind it on its queue
  else
    census.change(call.queue, -redis.call('ZREM', wait_key(S.L.name, call.queue), call.ref))
    if S.L.left then S.L.left[call.ref] = true end
  end
  local at = held.at
  if held.kind == 'task' then
    S.set_by = S.set_by + 1
    at = crew.park(call.ref, call.r, call.task, held.known)
  elseif held.kind == 'suspect' then
    wait_until(at, call.ref, call.r)
  elseif held.kind == 'budget' then
    S.set_by = S.set_by + 1
    if not purse.refuse(call.ref, call.r, held) then
      wait_until(at, call.ref, call.r)
      purse.await(held.purse, call.ref, at)
    end
  end
  if at then step.soon(S, at) end
end
-- Leaves the lane in the rows of parents that bar it, or (of a 'share') in which it waits for its next turn. It is taken out of
-- other rows: a lane that waits for something else must not hold up the lanes there.
function parking.in_turns(S, held)
  local L = S.L
  if held.kind == 'parent' then
    S.rows = turns.await(L, held.cost, held.waits)
  elseif held.kind == 'share' and L.parents then
    for _, P in ipairs(L.parents) do
      if not S.served or P.name == S.served then       -- while a row is served, other rows are left as they are
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
-- The lane is woken when there is money again before its budget begins anew; its calls that do not wait for money fail.
function parking.for_money(S, held)
  if held.kind ~= 'budget' or not held.purse.whole then return end
  purse.await(held.purse, S.L.name, held.at)
  if purse.refuse_all(S.L, held) then step.soon(S, now) end
end
-- Whether the lane's next call on a queue without a free slot lacks nothing but the slot. Else the time is noted at which it may
-- have a permit.
function parking.hungry(S, queue)
  local L = S.L
  local head = next(L.p) and (budget.first(L, {queue}, {[queue] = 1}) or head_of(L, queue))
  local r = head and record(head)
  if head and not r then
    census.change(queue, -redis.call('ZREM', wait_key(L.name, queue), head))  -- its record has expired
    step.soon(S, now)
    return false
  end
  if r and r[VERSION] > SCHEMA then return false end
  local held = bars.budget(L, r and r[COST] or NOTHING) or bars.money(S, {r = r})
  if held and held.alone then return true end          -- it is parked, and others may go, when there is a slot to look for
  if held then
    parking.for_money(S, held)
    if held.at then step.soon(S, held.at) end
    return false
  end
  -- Slots of an older version are filled by that version's pump: the lane stays due, so that it looks at it.
  local _, _, _, older = slots(queue)
  if older > 0 then step.soon(S, math.min(now, tonumber(redis.call('ZSCORE', NEXT, L.name) or now))) end
  return true
end
-- Puts the lane in the row of each queue where it lacks nothing but a slot, and takes it out of the other rows.
function parking.in_rows(S, may)
  local anybody                                        -- nil: not yet asked
  for _, q in ipairs(S.queues) do
    local free = S.room[q]
    if may and free and free ~= 'empty' and free <= 0 and parking.hungry(S, q) then
      row.enrol(S.L.name, q)
    else
      if anybody == nil then anybody = redis.call('EXISTS', HUNGRY) == 1 end
      if anybody then row.strike(S.L.name, q) end
    end
  end
end
-- Parks the whole lane. Kinds of bar, and where the lane waits:
--   begins, at_once, concurrency, lent  `full`: one of its own calls begins or ends
--   slots                               `hungry:Q`: the next free slot
--   gate, pace, quota                   `next`: the pump looks at that time; if closed: nowhere, until new set-points come
--   parent                              `turns:P`: the parent's row is served
--   share                               `next`, at once, or the parents' rows
--   budget                              `next`, at the day's or month's end, and `unfunded:NAME`: money was given back
function parking.lane(S, held)
  local L = S.L
  if S.moved > 0 then save(L) end
  if held.at then step.soon(S, held.at) end
  if held.kind == 'share' and not L.parents then step.soon(S, now) end
  parking.for_money(S, held)
  parking.in_turns(S, held)
  -- if calls went in this step, the event may have changed: they have to begin first
  full.set(L.name, held.event and (S.moved > 0 and own_room(L).event or held.event))
  parking.in_rows(S, not held.event and not held.closed)
  note(L.name, S.at)
end
local function park(S, call, held)
  if held.alone then parking.call(S, call, held) else parking.lane(S, held) end
end
