-- Release: what pace, mode and room allow goes out, and a lane in which something waits is left where something wakes it.

-- the row of a queue: lanes with a permit that found no slot there, in the order in which they are to be asked
local function enrol(L, queue)
  if redis.call('ZSCORE', row_key(queue), L.name) then return end
  redis.call('SADD', HUNGRY, queue)
  redis.call('ZADD', row_key(queue), redis.call('HINCRBY', PUMP, 'row', 1), L.name)
end
local function strike(lane, queue)
  if redis.call('ZREM', row_key(queue), lane) == 1 and redis.call('EXISTS', row_key(queue)) == 0 then
    redis.call('SREM', HUNGRY, queue)
  end
end
-- Release at most `most` calls of a lane -> how many went. A lane in which something waits is left where something wakes
-- it: in `next` (the pump, at that time), in a queue's row (the next free slot), in `full` (one of its own calls begins
-- or ends), in the row of a parent, or closed (new set-points). served: the parent whose turn it is to be asked
local function release(lane, most, greedy, served)
  local L = load(lane)
  local queues = redis.call('SMEMBERS', queues_key(lane))
  local at = ripen(L, queues)
  if DEGRADED[L.mode] and degrade(L) then at = now end
  local own, out, event = own_room(L)
  local moved, rooms, full, closed, lease, rows, parked = 0, {}, false, false, lease_us(), {}, 0
  local early = (not L.unlimited or L.parents) and ahead(L) or 0
  while true do
    local ref, queue, waits, tag = first_of(L, queues, rooms, out + moved, greedy)
    if moved >= own and waits then full = true break end
    if not ref then break end
    local retry, on, left
    if probes.on(L) then
      ref, queue = probes.choose(L, queues, rooms, ref, queue)
    elseif tag < BEHIND then
      retry, on, left = budget.first(L, queues, rooms)
      if retry then ref, queue = retry, on end
    end
    local r, message = record_and_message(ref)
    local task = r and crew.task_of(message)
    local c, known
    if r then c, known = crew.pick(queue, task, early) end
    if not r then
      redis.call('ZREM', wait_key(lane, queue), ref)   -- its record outlived its time
    elseif r[VERSION] > SCHEMA then
      rooms[queue] = 0                                 -- a newer worker's to release
      at = math.min(at or 1e18, now + 1e6)
    elseif not c then                                  -- no crew with room knows it: those behind it need not wait
      if parked == crew.PARKED_AT_ONCE then at = now break end
      parked = parked + 1
      redis.call('ZREM', wait_key(lane, queue), ref)
      at = math.min(at or 1e18, crew.park(ref, r, task, known))
    elseif r[LOST] > 0 and not suspect.may_go(r) then
      redis.call('ZREM', wait_key(lane, queue), ref)
      wait_until(now + suspect.again_us(), ref, r)
      at = math.min(at or 1e18, now + suspect.again_us())
    else
      local wait_us = admits_in(L, r[COST])
      if not wait_us then closed = true break end
      if wait_us > 0 then at = math.min(at or 1e18, now + wait_us) break end
      if moved >= most and not L.parents then at = now break end
      if moved >= most then                            -- its next turn comes when it is the first again
        for _, P in ipairs(L.parents) do
          if not served or P.name == served then       -- who serves a row goes on with it
            stand(P, lane, not served and now)
            rows[P.name] = true
          end
        end
        break
      end
      if L.parents and barred(L, r[COST], served, rows) then break end
      redis.call('ZREM', wait_key(lane, queue), ref)
      let_go(L, ref, r, lease, c, message)
      if probes.on(L) then probes.went(L, queue, message) end
      if retry then budget.pay(L, left) end
      moved = moved + 1
      rooms[queue] = rooms[queue] - 1
      if #queues > 1 then rooms = {} end               -- queues share slots: count again
    end
  end
  if moved > 0 then save(L) end
  stood = rows
  for i = 1, L.parents and #L.parents or 0 do           -- whoever waits for something else holds up nobody there
    local P = L.parents[i]
    if not rows[P.name] and redis.call('ZREM', turns_key(P.name), lane) == 1 and P.name ~= served then wake(P.name) end
  end
  if full then
    if moved > 0 then event = select(3, own_room(L)) end
    redis.call('HSET', FULL, lane, event)
  else
    redis.call('HDEL', FULL, lane)
  end
  local anybody = redis.call('EXISTS', HUNGRY) == 1
  for _, q in ipairs(queues) do
    local hungry = false
    if rooms[q] and rooms[q] ~= 'empty' and rooms[q] <= 0 and not full and not closed then
      local head = next(L.p) and (budget.first(L, {q}, {[q] = 1}) or head_of(L, q))
      local r = head and record(head)
      if head and not r then
        redis.call('ZREM', wait_key(lane, q), head)
        at = now
      elseif not r or r[VERSION] <= SCHEMA then
        local wait_us = admits_in(L, r and r[COST] or NOTHING)
        hungry = wait_us == 0
        local _, _, _, older = slots(q)
        -- Slots of an older version are its pump's to fill: the lane stays due until that has looked at it.
        if hungry and older > 0 then at = math.min(at or 1e18, now, tonumber(redis.call('ZSCORE', NEXT, lane) or now)) end
        if wait_us and wait_us > 0 then at = math.min(at or 1e18, now + wait_us) end
      end
    end
    if hungry then enrol(L, q) elseif anybody then strike(lane, q) end
  end
  note(lane, at)
  return moved
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
    local again = asked[lane]
    if again and (redis.call('ZCARD', row_key(queue)) == 1 or vacant(queue) <= 0) then return end
    local alone = redis.call('ZCARD', row_key(queue)) == 1
    local n = release(lane, alone and free - given or 1, again)
    given, asked[lane] = given + n, n == 0
    if not alone or #rows > 1 then                     -- asked: to the end
      redis.call('ZADD', row_key(queue), 'XX', redis.call('HINCRBY', PUMP, 'row', 1), lane)
    end
    if given >= free or again then return end
  end
end
-- A parent's row: each of the lanes there in its turn, until the parent bars the first. O(released · log waiting).
local function serve(parent, most)
  redis.call('ZREM', NEXT, row_of(parent))
  local moved = 0
  while moved < most do
    local lane = redis.call('ZRANGE', turns_key(parent), 0, 0)[1]
    if not lane then return moved end
    local n = release(lane, 1, false, parent)
    moved = moved + n
    if n == 0 and stood[parent] then return moved end
    if n == 0 then redis.call('ZREM', turns_key(parent), lane) end  -- it waits for something else, or is no child any more
  end
  wake(parent)
  return moved
end
local function look(at, most)                          -- a lane of `next`, or a parent's row
  local parent = string.match(at, '^\n(.*)$')
  if parent then return serve(parent, most) end
  return release(at, most)
end
-- the pump is late (its holder was killed, or its thread starves): whoever is here does its work for one lane. Where no crew
-- lives, it is the pump of an older version, whose lanes we would only put off.
local function overdue()
  if memo[NEXT_EMPTY] then return end
  local e = redis.call('ZRANGE', NEXT, 0, 0, 'WITHSCORES')
  if e[2] and tonumber(e[2]) < now - 4000 and (slots('')) > 0 then look(e[1], 20) end
end
