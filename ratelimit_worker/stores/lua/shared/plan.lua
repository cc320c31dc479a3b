-- The pump's plan: which lane has to be looked at when.

local function plan(at)                                -- wake the pump when `at` is before the end of its sleep
  local sleep = tonumber(redis.call('HGET', PUMP, 'sleep') or '1e18')
  if at < sleep then
    redis.call('HSET', PUMP, 'sleep', int(at))
    redis.call('PUBLISH', key('wake'), int(at))
  end
end
local function note(lane, at)                          -- the pump has to look at `lane` at `at` (nil: it need not)
  if not at then
    if not memo[NEXT_EMPTY] then redis.call('ZREM', NEXT, lane) end
    return
  end
  memo[NEXT_EMPTY] = nil
  redis.call('ZADD', NEXT, int(at), lane)
  plan(at)
end
-- Lanes that wait for a parent stand in its row, and the pump looks at the row: `next` holds it under the parent's name
-- behind a newline, which no lane's name has.
local function row_of(parent) return '\n' .. parent end
function wake(parent)
  if redis.call('EXISTS', turns_key(parent)) == 1 then note(row_of(parent), now) end
end
local function lease_us()
  memo[LEASE] = memo[LEASE] or tonumber(redis.call('HGET', PUMP, 'lease') or '30e6')
  return memo[LEASE]
end
