-- The pump's plan: which lane has to be looked at when. Nobody else writes `next`.

local function plan(at)                                -- wake the pump when `at` is before the end of its sleep
  local sleep = tonumber(redis.call('HGET', PUMP, 'sleep') or '1e18')
  if at < sleep then
    redis.call('HSET', PUMP, 'sleep', int(at))
    redis.call('PUBLISH', key('wake'), int(at))
  end
end
local function note(lane, at)                          -- the pump has to look at `lane` at `at` (nil: it need not)
  if not at then
    if not memo.unplanned then redis.call('ZREM', NEXT, lane) end
    return
  end
  memo.unplanned = false
  redis.call('ZADD', NEXT, int(at), lane)
  plan(at)
end
local function planned()                               -- how many it has to look at
  local n = redis.call('ZCARD', NEXT)
  memo.unplanned = n == 0
  return n
end
local function replan()                                -- all of them now: they were planned on a clock that was set back
  for _, lane in ipairs(redis.call('ZRANGE', NEXT, 0, -1)) do redis.call('ZADD', NEXT, int(now), lane) end
end
-- Lanes that wait for a parent stand in its row, and the pump looks at the row: `next` holds it under the parent's name
-- behind a newline, which no lane's name has.
local function row_of(parent) return '\n' .. parent end
function wake(parent)
  if redis.call('EXISTS', turns_key(parent)) == 1 then note(row_of(parent), now) end
end
-- How long a call may be out before somebody has to renew it, µs. known: it is this, as the caller has just read or written it
local function lease_us(known)
  memo.lease = known or memo.lease or tonumber(redis.call('HGET', PUMP, 'lease') or '30e6')
  return memo.lease
end
