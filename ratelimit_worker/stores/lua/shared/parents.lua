-- A call is released when its lane and each of the lane's parents admit it. A lane that waits for a parent stands in the
-- parent's row, ordered by the start tag of its next turn (start-time fair queueing among lanes, all with the same weight). It
-- may take from the parent when it is the first in the row.

local turns = {}
function turns.start(P, lane)
  return tonumber(redis.call('ZSCORE', turns_key(P.name), lane) or '')
    or math.max(P.turn, tonumber(redis.call('ZSCORE', shares_key(P.name), lane) or '0'))
end
function turns.first(P, lane)                          -- whether no lane in the row goes before it
  local e = redis.call('ZRANGE', turns_key(P.name), 0, 0, 'WITHSCORES')
  return not e[1] or e[1] == lane or turns.start(P, lane) < tonumber(e[2])
end
function turns.crowded(P)                              -- -> which bound on calls out at once is reached (see own_room), or false
  if P.cap == 0 and P.at_once == 0 then return false end
  local out = redis.call('ZCARD', out_key(P.name))
  return (P.cap > 0 and out >= P.cap and 'concurrency')
    or (P.at_once > 0 and out >= P.at_once and aside.living(P.name) >= P.at_once and 'at_once')
end
function turns.take(L, cost)
  for _, P in ipairs(L.parents) do
    local start, k = turns.start(P, L.name), shares_key(P.name)
    P.turn = math.max(P.turn, start)
    redis.call('ZREMRANGEBYSCORE', k, '-inf', whole(P.turn))  -- entries up to `turn` have no effect any more
    if redis.call('ZADD', k, whole(start + service(P, cost)), L.name) == 1 then redis.call('EXPIRE', k, TTL_S.TENANT) end
    redis.call('ZREM', turns_key(P.name), L.name)      -- its next turn has another start
  end
end
function turns.stand(P, lane, at)                      -- puts the lane in the parent's row, which is looked at by then
  redis.call('ZADD', turns_key(P.name), 'NX', whole(turns.start(P, lane)), lane)
  local planned_at = redis.call('ZSCORE', NEXT, row_of(P.name))
  if at and (not planned_at or tonumber(planned_at) > at) then note(row_of(P.name), at) end
end
function turns.go(parent, lane) return redis.call('ZREM', turns_key(parent), lane) == 1 end  -- takes it out of the row
-- How long the lane's next call has to wait for each parent, in their order: µs; inf: until an event; 'turn': until lanes before
-- it have gone -> an array of these, or nil if it need not wait for any. served: the parent whose row is being served
function turns.waits(L, cost, served)
  local waits, any = {}, false
  for i, P in ipairs(L.parents) do
    waits[i] = turns.crowded(P) and math.huge or admits_in(P, cost) or math.huge
    if P.name ~= served and waits[i] < math.huge and not turns.first(P, L.name) then waits[i] = 'turn' end
    any = any or waits[i] ~= 0
  end
  return any and waits or nil
end
-- Puts the lane in the row of each parent that bars its next call. It also keeps its place in the row of the slowest parent if
-- the others will admit it soon (within the time that the call takes of the slowest one's budget): else it might never find all
-- of them free at once. waits: from turns.waits -> {parent: true …}, the parents in whose rows it stands
function turns.await(L, cost, waits)
  local slowest, longest_s, rows = 0, -1, {}
  for i, P in ipairs(L.parents) do
    local s = service_s(P, cost)
    if s > longest_s then slowest, longest_s = i, s end
  end
  for i, P in ipairs(L.parents) do
    local elsewhere = 0
    for j, wait_us in ipairs(waits) do
      if j ~= i then elsewhere = math.max(elsewhere, wait_us == 'turn' and math.huge or wait_us) end
    end
    if waits[i] == 'turn' then
      turns.stand(P, L.name, not redis.call('ZSCORE', NEXT, row_of(P.name)) and now)
      rows[P.name] = true
    elseif waits[i] > 0 then
      turns.stand(P, L.name, waits[i] < math.huge and now + waits[i])
      rows[P.name] = true
    elseif i == slowest and elsewhere <= longest_s * 1e6 then
      turns.stand(P, L.name, now + elsewhere)
      rows[P.name] = true
    end
  end
  return rows
end
