-- A call goes when its lane and each of its parents admit it. A lane that waits for a parent stands in its row, at the
-- start of its next turn (start-time fair queueing again, all lanes alike), and takes from it when it is the first there.

local turns = {}
function turns.start(P, lane)
  return tonumber(redis.call('ZSCORE', turns_key(P.name), lane) or '')
    or math.max(P.turn, tonumber(redis.call('ZSCORE', shares_key(P.name), lane) or '0'))
end
function turns.first(P, lane)                          -- whether nobody in the row goes before it
  local e = redis.call('ZRANGE', turns_key(P.name), 0, 0, 'WITHSCORES')
  return not e[1] or e[1] == lane or turns.start(P, lane) < tonumber(e[2])
end
function turns.crowded(P)                              -- as many are out as may be -> by which bound, as own_room says it
  if P.cap == 0 and P.width == 0 then return false end
  local out = redis.call('ZCARD', out_key(P.name))
  return (P.cap > 0 and out >= P.cap and 'concurrency') or (P.width > 0 and out >= P.width and 'width')
end
function turns.take(L, cost)
  for _, P in ipairs(L.parents) do
    local start, k = turns.start(P, L.name), shares_key(P.name)
    P.turn = math.max(P.turn, start)
    redis.call('ZREMRANGEBYSCORE', k, '-inf', int(P.turn))  -- says no more than `turn` does
    if redis.call('ZADD', k, int(start + service(P, cost)), L.name) == 1 then redis.call('EXPIRE', k, TTL_S.TENANT) end
    redis.call('ZREM', turns_key(P.name), L.name)      -- its next turn has another start
  end
end
function turns.stand(P, lane, at)                      -- in the parent's row, which is looked at by then
  redis.call('ZADD', turns_key(P.name), 'NX', int(turns.start(P, lane)), lane)
  local planned_at = redis.call('ZSCORE', NEXT, row_of(P.name))
  if at and (not planned_at or tonumber(planned_at) > at) then note(row_of(P.name), at) end
end
function turns.go(parent, lane) return redis.call('ZREM', turns_key(parent), lane) == 1 end  -- out of the row
-- How long the lane's next call waits for each parent, in their order: µs; inf: for an event; 'turn': for others before
-- it -> these, or nil where none bars it. served: the parent whose turn it is to be asked
function turns.waits(L, cost, served)
  local waits, any = {}, false
  for i, P in ipairs(L.parents) do
    waits[i] = turns.crowded(P) and math.huge or admits_in(P, cost) or math.huge
    if P.name ~= served and waits[i] < math.huge and not turns.first(P, L.name) then waits[i] = 'turn' end
    any = any or waits[i] ~= 0
  end
  return any and waits or nil
end
-- Leaves the lane in the row of each parent that bars its next call. The slowest parent is kept for it too when the others
-- come soon, within the time of the call's service there: else it might never find all of them at once.
-- waits: as turns.waits says -> {parent: true …}, those in whose rows the lane stands
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
