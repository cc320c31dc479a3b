-- Release: calls that pace, mode and room allow go out; then the lane waits where the end of its bar wakes it.

-- Releases at most `most` calls of a lane -> how many went; the parents in whose rows it stands now.
-- greedy, served: see step.lua
local function release(lane, most, greedy, served)
  local L, queues = load(lane), redis.call('SMEMBERS', queues_key(lane))
  local at = ripen(L, queues)
  if DEGRADED[L.mode] and degrade(L) then at = now end
  local S, held = step.of(L, queues, most, greedy, served), nil
  S.at = at
  -- Not with several queues (they share slots), parents (lanes share them) or probes (tasks take turns): there each call must be
  -- counted before the next is looked at.
  if #queues == 1 and not L.parents and not probes.on(L) then
    batch.open()
    L.left, L.many = {}, math.min(most, batch.LOOKS) + 1
  end
  repeat
    local call = choose(S)
    held = bar(S, call)
    if not held then
      let_go(S, call)
    else
      if not held.alone then batch.close() end
      park(S, call, held)
    end
  until held and not held.alone
  return S.moved, S.rows
end
-- Whether at least half of the calls that may be ready beyond a queue's slots still are. Then a lane that is alone in the row
-- need not be asked at every end of a call, but for several slots together: most of a release costs the same for one or many.
function row.supplied(queue)
  local free, here = vacant(queue)
  return free <= -math.ceil(math.min(here, SUPPLY) / 2)
end
-- Slots are free: the lanes in the rows get them in turn. A lane that has its share is passed over, unless no other can use the
-- slot. O(tries · log waiting).
local function feed(free)
  local given, asked, woken = 0, {}, false
  for _ = 1, TRIES + free do
    local lane, queue, first, alone
    local rows = redis.call('SMEMBERS', HUNGRY)
    for _, q in ipairs(rows) do
      local e = q ~= crew.ROW and redis.call('ZRANGE', row_key(q), 0, 1, 'WITHSCORES')
      if not e then
        if not woken then crew.wake(redis.call('SRANDMEMBER', crew.CROWDED, TRIES)) end
        woken = true
      elseif not e[1] then
        redis.call('SREM', HUNGRY, q)
      elseif not first or tonumber(e[2]) < first then
        local _, here = slots(q)
        if here > 0 then lane, queue, first, alone = e[1], q, tonumber(e[2]), not e[3] end
      end
    end
    if not lane then return end
    local again = asked[lane]
    if again and (alone or vacant(queue) <= 0) then return end
    local sole = alone and #rows == 1
    if sole and row.supplied(queue) then return end
    memo.sole = alone and row_key(queue) or nil
    local n = release(lane, sole and free + SUPPLY or alone and free - given or 1, again)
    memo.sole = nil
    given, asked[lane] = given + n, n == 0
    if not alone or #rows > 1 then row.back(lane, queue) end  -- to the end
    if given >= free or again then return end
  end
end
-- Serves a parent's row: the lanes in it release in turn, until the parent bars the first. O(released · log waiting).
local function serve(parent, most)
  note(row_of(parent), nil)
  local moved = 0
  while moved < most do
    local lane = redis.call('ZRANGE', turns_key(parent), 0, 0)[1]
    if not lane then return moved end
    local n, stands = release(lane, 1, false, parent)
    moved = moved + n
    if n == 0 and stands[parent] then return moved end
    if n == 0 then turns.go(parent, lane) end          -- it waits for something else, or has other parents now
  end
  wake(parent)
  return moved
end
local function look(at, most)                          -- at: a member of `next`: a lane, or a parent's row
  local parent = string.match(at, '^\n(.*)$')
  if parent then return serve(parent, most) end
  return (release(at, most))
end
-- If the pump is late (its process was killed, or its thread starves), the script that is running does its work for one lane. Not
-- if no worker of any crew lives: then the pump is one of an older version, and we could release nothing.
local function overdue()
  if memo.unplanned or pump.in_time() then return end
  local e = redis.call('ZRANGE', NEXT, 0, 0, 'WITHSCORES')
  if e[2] and tonumber(e[2]) < now - pump.LATE_US then
    if (slots('')) > 0 then look(e[1], 20) end
  else
    pump.first_is(e[2])
  end
end
-- n of the lane's calls are not out any more (begun: all of them had begun); the lane may have waited for that
local function after(lane, n, begun)
  local awaits = full.of(lane)
  if awaits == 'ends' or (awaits and not begun) then release(lane, n) end
end
