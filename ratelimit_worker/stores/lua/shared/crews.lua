-- A call goes to a crew that knows its task. If no crew with a free slot knows it, the call is parked, so that those behind it
-- need not wait; it is woken when a crew that knows its task has a free slot.

-- A cache of which crew knows which task, n entries of at most MOST. A crew's name is a digest of its tasks, so they never
-- change.
crew.known, crew.n, crew.MOST = {}, 0, 10000
crew.PARKED_AT_ONCE = 100                              -- calls, in one step of a lane
-- How long a call is parked: if no worker knows its task; if workers of an older version may know it; if the crews that know it
-- are full. With many thousand calls waiting for a time in its lane and queue, that long for each thousand (MANY).
crew.UNKNOWN_US, crew.OLDER_US, crew.FULL_US, crew.MANY = 30e6, 1e6, 1e6, 1000
crew.WAKE_US = 0.25e6                                  -- between two looks at all parked calls
crew.LOST_US = 1e6                                     -- a call that was read that long ago and has not begun will not begin
crew.ROW = '\nparked'                                  -- member of `hungry` while calls of known tasks are parked
-- The name of a call's task, escaped as in JSON; nil: it is an in-process call, which only its own process serves.
function crew.task_of(message)                         -- without a pattern, which would look at each byte before it
  local _, from = string.find(message, '"task": "', 1, true)
  local to = from and string.find(message, '"', from + 1, true)
  return to and string.sub(message, from + 1, to - 1)
end
function crew.knows(name, task)
  if not task or name == crew.ALL or name == crew.PLAIN then return true end
  if crew.known[name] and crew.known[name][task] then return true end
  if redis.call('SISMEMBER', key('tasks:') .. name, task) == 0 then return false end
  if crew.n >= crew.MOST then crew.known, crew.n = {}, 0 end
  crew.known[name], crew.n = crew.known[name] or {}, crew.n + 1
  crew.known[name][task] = true
  return true
end
-- The crew of a queue to which a call of this task goes: of those that know it, the one with most free slots; nil: none of them
-- has room. ahead: calls that may go before a slot is free. If the queue has one crew, bars.slots has asked for room already.
-- -> crew, whether any crew knows the task
function crew.pick(queue, task, ahead)
  local _, _, crews = slots(queue)
  if #crews > 1 and not crews[1][3] then vacant(queue) end
  local best
  for _, c in ipairs(crews) do
    if crew.knows(c[1], task) and (not best or c[3] > best[3]) then best = c end
  end
  if best and #crews > 1 and best[3] + ahead <= 0 then return nil, true end
  return best, best ~= nil
end
function crew.parked_key(queue, task) return key('parked:') .. #queue .. ':' .. queue .. ':' .. task end
-- Parks a call that has just left its place. It waits as for a time, so that every version can find it -> that time
function crew.park(ref, r, task, known)
  local _, _, _, older = slots(r[QUEUE])
  local delay = known and crew.FULL_US or (older > 0 and crew.OLDER_US or crew.UNKNOWN_US)
  delay = delay * math.max(1, redis.call('ZCARD', due_key(r[LANE], r[QUEUE])) / crew.MANY)
  local due, k = now + delay, crew.parked_key(r[QUEUE], task)
  wait_until(due, ref, r)
  redis.call('ZADD', k, whole(due), ref)
  redis.call('EXPIRE', k, whole(3600 + delay / 1e6))
  local row = #r[QUEUE] .. ':' .. r[QUEUE] .. ':' .. task
  redis.call('SADD', crew.PARKED, row)
  if known then                                        -- a free slot will wake it; else only a new crew does
    redis.call('SADD', crew.CROWDED, row)
    redis.call('SADD', HUNGRY, crew.ROW)
  end
  return due
end
-- Parked calls whose crews have free slots go back to their places, as many as there are slots. O(rows · log parked).
-- rows: members of `parked`, each a queue and task
function crew.wake(rows)
  for _, row in ipairs(rows) do
    local long, rest = string.match(row, '^(%d+):(.*)$')
    local queue, task = string.sub(rest, 1, tonumber(long)), string.sub(rest, tonumber(long) + 2)
    local k = crew.parked_key(queue, task)
    redis.call('ZREMRANGEBYSCORE', k, '-inf', whole(now - KNOWN.LISTED_US))
    local _, here = vacant(queue)
    local c = here > 0 and crew.pick(queue, task, 1e9)
    local free = c and c[3] or 0
    if free > 0 then
      local e = redis.call('ZPOPMIN', k, free)
      for i = 1, #e, 2 do
        local r = record(e[i])
        if r and redis.call('ZADD', due_key(r[LANE], queue), 'XX', 'CH', whole(now), e[i]) == 1 then note(r[LANE], now) end
      end
    end
    local gone = redis.call('EXISTS', k) == 0
    if gone then redis.call('SREM', crew.PARKED, row) end
    if gone or not c then
      redis.call('SREM', crew.CROWDED, row)
    else
      redis.call('SADD', crew.CROWDED, row)
      redis.call('SADD', HUNGRY, crew.ROW)
    end
  end
  if redis.call('EXISTS', crew.CROWDED) == 0 then redis.call('SREM', HUNGRY, crew.ROW) end
end
-- Whether the pump of an older version may sleep: that version has no workers, or crews serve all its queues and no lane waits
-- for a slot.
function crew.suffice()
  local _, _, _, _, old = slots('')
  if old == 0 then return true end
  for _, q in ipairs(redis.call('SMEMBERS', HUNGRY)) do
    if q ~= crew.ROW then return false end
  end
  for _, v in ipairs(redis.call('HVALS', key('slots'))) do
    local w = cmsgpack.unpack(v)
    for i = 2, #w do
      local _, here, _, older = slots(w[i])
      if older > 0 and here == 0 then return false end
    end
  end
  return true
end
-- Crews of a queue that have calls out, or had a moment ago.
function crew.names(queue)
  local names = {}
  for _, at in ipairs(redis.call('SMEMBERS', key('oncrews'))) do
    local name, where = string.match(at, '^([^:]*):(.*)$')
    if where == queue then names[#names + 1] = name end
  end
  return names
end
