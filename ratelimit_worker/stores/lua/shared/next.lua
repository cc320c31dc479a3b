-- In which order the calls of a lane go: by tag, which waiting.lua gives them.

-- The calls at the front of a queue. A step that takes several of them reads L.many at once, and passes over those that have
-- left in this step (L.left). L.several: several bands wait, so the next call need not be the one behind the first.
function batch.front(L, k)                                -- {the first, its score}; {}: none waits
  if not L.left or L.several then return redis.call('ZRANGE', k, 0, 0, 'WITHSCORES') end
  local e = L.front
  if not e or (e.at > #e and not e.all) then
    batch.flush()
    e = redis.call('ZRANGE', k, 0, L.many - 1, 'WITHSCORES')
    e.at, e.all, L.front = 1, #e < 2 * L.many, e
  end
  while L.left[e[e.at]] do e.at = e.at + 2 end
  if e.at > #e and not e.all then return batch.front(L, k) end
  return {e[e.at], e[e.at + 1]}
end
function batch.last(L, k)                              -- the score of the last
  if L.front and L.front.all then return tonumber(L.front[#L.front]) end
  return tonumber(redis.call('ZRANGE', k, -1, -1, 'WITHSCORES')[2])
end
function batch.one_by_one(L)                                -- several bands wait: from now on call by call
  if not L.left or L.several then return end
  L.several, L.front = true, nil
  batch.flush()
end
-- The first of the lane's calls on a queue, and its tag: the start of its turn, plus what its class has to wait longer (AGES_S
-- seconds of service at the present pace). So calls age by what the lane does, however slow that is. Retries come after all
-- others. retries: true to look at retries only.
local function head_of(L, queue, retries)
  local k = wait_key(L.name, queue)
  local e
  if retries then
    e = redis.call('ZRANGEBYSCORE', k, whole(BEHIND), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  else
    e = batch.front(L, k)
  end
  if not e[1] then return nil end
  if not L.speed then                                  -- tags/s; without a pace, about one call per second and slot
    L.speed = speed(L) or TAGS * math.max(1, (slots(queue)))
    if L.at_once > 0 and L.gap > 0 then L.speed = math.min(L.speed, TAGS * 1e6 / L.gap) end
  end
  L.lowest = L.lowest or {}                            -- by queue: the last band with a waiting call; kept for the whole step
  local lowest = L.lowest[queue]
  if not lowest then
    lowest = math.floor(batch.last(L, k) / BAND)
    L.lowest[queue] = lowest
  end
  local behind = tonumber(e[2]) >= BEHIND and BEHIND or 0
  lowest = math.min(lowest, (behind > 0 and 2 or 1) * RETRIES - 1)
  local ref, first
  while true do
    local score = tonumber(e[2])
    local class = math.floor(score / BAND)
    if class > lowest then return ref, first end       -- the rest are retries
    local tag = behind + math.min(BEHIND - 1, score - class * BAND + AGES_S[class % RETRIES] * L.speed)
    if not first or tag < first then ref, first = e[1], tag end
    if class >= lowest then return ref, first end
    batch.one_by_one(L)
    e = redis.call('ZRANGEBYSCORE', k, whole((class + 1) * BAND), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not e[1] then return ref, first end
  end
end
-- The first of the lane's calls on queues with room -> {ref, queue, tag}; {}: calls wait, but none of their queues has room;
-- nil: none waits
local function first_of(S)
  local call
  for _, q in ipairs(S.queues) do
    if S.room[q] ~= 'empty' then
      local head, tag = head_of(S.L, q)
      if not head then
        S.room[q] = 'empty'
        if not asking and redis.call('EXISTS', due_key(S.L.name, q)) == 0 then
          redis.call('SREM', queues_key(S.L.name), q)
        end
      else
        call = call or {}
        if step.room(S, q) > 0 and (not call.tag or tag < call.tag) then call.ref, call.tag, call.queue = head, tag, q end
      end
    end
  end
  return call
end
