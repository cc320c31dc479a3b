-- In which order the calls of a lane go: by their tags, see waiting.lua.

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
-- The first of the lane's calls among the queues that have room -> {ref, queue, tag}; {}: no queue of those that wait has
-- room; nil: none waits
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
