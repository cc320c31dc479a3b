-- Who is next, and how a call goes out: with a permit into the ready list and the ledger, in one step.

-- into the ready list of a crew and the ledger in one step. message: its text, where it was read; new: it is stored with the
-- record
local function give(ref, r, ttl_us, c, message, new)
  r[RELEASE] = count('released')
  r[BORN] = math.min(r[BORN], r[RELEASE] - 1)
  local tag = ref .. '.' .. int(r[RELEASE])
  redis.call('ZADD', LEDGER, int(now + ttl_us), tag)
  redis.call('ZADD', out_key(r[LANE]), 0, tag)         -- 0: not begun, 1: begun
  r[CLAIM], r[DEGRADES], r[PARENTS] = r[CLAIM] or false, r[DEGRADES] or false, r[PARENTS] or false  -- no holes
  r[CREW] = c[1]
  if c[3] then c[3] = c[3] - 1 end
  for i = 1, r[PARENTS] and #r[PARENTS] or 0 do
    redis.call('ZADD', out_key(r[PARENTS][i]), 0, tag)
    redis.call('SADD', key('busy'), r[PARENTS][i])
  end
  redis.call('SADD', crew.taken_key(r), tag)
  if not busy[r[LANE]] then redis.call('SADD', key('busy'), r[LANE]) end  -- what is out of is in these; the sweep drops
  local at = crew.at(c[1], r[QUEUE])
  if not oncrew[at] then redis.call('SADD', key('oncrews'), at) end  -- what is no longer
  if r[LOST] > 0 then suspect.mark(ref, r, true) end
  keep(ref, r, new and message)
  redis.call('LPUSH', crew.list_of(r), text_of(ref, r, tag, message))
end
-- out of the lane with a permit
local function let_go(L, ref, r, ttl_us, c, message, new)
  spend(L, r[COST])
  -- one behind it: what comes later has a later place, also when this one comes back (ties go by name, not by time)
  L.v = math.max(L.v, r[SCORE] - band(r[CLASS]) + 1)
  r[PERMIT], r[TICKET] = TAKEN, {L.seq, now, L.c[1], L.c[2], L.c[3], L.c[4]}
  if L.parents then
    r[PARENTS] = L.names
    take_turns(L, r[COST])
  end
  give(ref, r, ttl_us, c, message, new)
end

-- The first of the lane's calls on a queue, and its tag: the start of its turn, plus what its class has to wait longer at
-- the pace of now. So classes age with what the lane does, however slow that has become. Retries come after all others;
-- retries: the first of them alone.
local function head_of(L, queue, retries)
  local k = wait_key(L.name, queue)
  local e
  if retries then
    e = redis.call('ZRANGEBYSCORE', k, int(BEHIND), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  else
    e = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
  end
  if not e[1] then return nil end
  if not L.speed then                                  -- without a pace: about a call a second and slot
    L.speed = speed(L) or TAGS * math.max(1, (slots(queue)))
    if L.width > 0 and L.gap > 0 then L.speed = math.min(L.speed, TAGS * 1e6 / L.gap) end
  end
  L.lowest = L.lowest or {}                            -- by queue: the last band that waits; a release only takes calls away
  local lowest = L.lowest[queue]
  if not lowest then
    lowest = math.floor(tonumber(redis.call('ZRANGE', k, -1, -1, 'WITHSCORES')[2]) / BAND)
    L.lowest[queue] = lowest
  end
  local behind = tonumber(e[2]) >= BEHIND and BEHIND or 0
  lowest = math.min(lowest, (behind > 0 and 2 or 1) * RETRIES - 1)
  local ref, first
  while true do
    local score = tonumber(e[2])
    local class = math.floor(score / BAND)
    if class > lowest then return ref, first end       -- a retry behind the others
    local tag = behind + math.min(BEHIND - 1, score - class * BAND + AGES_S[class % RETRIES] * L.speed)
    if not first or tag < first then ref, first = e[1], tag end
    if class >= lowest then return ref, first end
    e = redis.call('ZRANGEBYSCORE', k, int((class + 1) * BAND), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not e[1] then return ref, first end
  end
end
-- the first of the lane's calls among the queues that have room, its queue; whether any call waits at all; and its tag
local function first_of(L, queues, rooms, out, greedy)
  local ref, first, queue
  local waits = false
  for _, q in ipairs(queues) do
    if rooms[q] ~= 'empty' then
      local head, tag = head_of(L, q)
      if not head then
        rooms[q] = 'empty'
        if not memo[LOOKS] and redis.call('EXISTS', due_key(L.name, q)) == 0 then
          redis.call('SREM', queues_key(L.name), q)
        end
      else
        waits = true
        if not rooms[q] then rooms[q] = room(L, q, out, greedy) end
        if rooms[q] > 0 and (not first or tag < first) then ref, first, queue = head, tag, q end
      end
    end
  end
  return ref, queue, waits, first
end
