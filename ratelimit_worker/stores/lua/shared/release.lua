-- Release: what pace, mode and room allow goes out, and a lane in which something waits is left where something wakes it.

-- Release at most `most` calls of a lane -> how many went; the parents in whose rows it stands now.
-- greedy, served: see step.lua
local function release(lane, most, greedy, served)
  local L, queues = load(lane), redis.call('SMEMBERS', queues_key(lane))
  local at = ripen(L, queues)
  if DEGRADED[L.mode] and degrade(L) then at = now end
  local S, held = step.of(L, queues, most, greedy, served), nil
  S.at = at
  repeat
    local call = choose(S)
    held = bar(S, call)
    if held then park(S, call, held) else let_go(S, call) end
  until held and not held.alone
  return S.moved, S.rows
end
-- Whether half of what may lie ready beyond the slots of a queue still does: then a lane that stands alone in the row is asked
-- by one of the next calls that end, for several together, since most of a release is to look and to write what it found.
function row.supplied(queue)
  local free, here = vacant(queue)
  return free <= -math.ceil(math.min(here, SUPPLY) / 2)
end
-- Slots are free: the lanes in the rows get them, each in turn. One that has its share is passed over, unless nobody
-- else can use the slot. O(tries · log waiting).
local function feed(free)
  local given, asked, woken = 0, {}, false
  for _ = 1, TRIES + free do
    local lane, queue, first
    local rows = redis.call('SMEMBERS', HUNGRY)
    for _, q in ipairs(rows) do
      local e = q ~= crew.ROW and redis.call('ZRANGE', row_key(q), 0, 0, 'WITHSCORES')
      if not e then
        if not woken then crew.wake(redis.call('SRANDMEMBER', crew.CROWDED, TRIES)) end
        woken = true
      elseif not e[1] then
        redis.call('SREM', HUNGRY, q)
      elseif not first or tonumber(e[2]) < first then
        local _, here = slots(q)
        if here > 0 then lane, queue, first = e[1], q, tonumber(e[2]) end
      end
    end
    if not lane then return end
    local again, alone = asked[lane], redis.call('ZCARD', row_key(queue)) == 1
    if again and (alone or vacant(queue) <= 0) then return end
    local sole = alone and #rows == 1
    if sole and row.supplied(queue) then return end
    local n = release(lane, sole and free + SUPPLY or alone and free - given or 1, again)
    given, asked[lane] = given + n, n == 0
    if not alone or #rows > 1 then row.back(lane, queue) end  -- to the end
    if given >= free or again then return end
  end
end
-- A parent's row: each of the lanes there in its turn, until the parent bars the first. O(released · log waiting).
local function serve(parent, most)
  note(row_of(parent), nil)
  local moved = 0
  while moved < most do
    local lane = redis.call('ZRANGE', turns_key(parent), 0, 0)[1]
    if not lane then return moved end
    local n, stands = release(lane, 1, false, parent)
    moved = moved + n
    if n == 0 and stands[parent] then return moved end
    if n == 0 then turns.go(parent, lane) end          -- it waits for something else, or is no child any more
  end
  wake(parent)
  return moved
end
local function look(at, most)                          -- a lane of `next`, or a parent's row
  local parent = string.match(at, '^\n(.*)$')
  if parent then return serve(parent, most) end
  return (release(at, most))
end
-- the pump is late (its holder was killed, or its thread starves): whoever is here does its work for one lane. Where no crew
-- lives, it is the pump of an older version, whose lanes we would only put off.
local function overdue()
  if memo.unplanned then return end
  local e = redis.call('ZRANGE', NEXT, 0, 0, 'WITHSCORES')
  if e[2] and tonumber(e[2]) < now - 4000 and (slots('')) > 0 then look(e[1], 20) end
end
-- n of the lane's calls are out no more (begun: all of them had begun): the lane may have waited for that
local function after(lane, n, begun)
  local awaits = full.of(lane)
  if awaits == 'ends' or (awaits and not begun) then release(lane, n) end
end
