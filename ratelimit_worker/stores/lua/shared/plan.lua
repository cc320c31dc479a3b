-- The pump's plan: which lane has to be looked at when. Only this file writes `next`.

-- The pump is late if it has not looked at a lane LATE_US after the planned time. The time until which it cannot be late is kept
-- from one script to the next; what scripts of another version plan meanwhile is noticed at the end of it, LATE_US later at most.
local pump = {LATE_US = 4000, from = 0, till = 0}
function pump.in_time() return now >= pump.from and now < pump.till end
function pump.first_is(at)                             -- when it has to look at the first lane, µs; nil: at none
  pump.from, pump.till = now, math.min(now, tonumber(at or now)) + pump.LATE_US
end
local function plan(at)                                -- wakes the pump if `at` is before the end of its sleep
  local sleep = tonumber(redis.call('HGET', PUMP, 'sleep') or '1e18')
  if at < sleep then
    redis.call('HSET', PUMP, 'sleep', whole(at))
    redis.call('PUBLISH', key('wake'), whole(at))
  end
end
local function note(lane, at)                          -- the pump will look at `lane` at `at`, µs (nil: not at all)
  if not at then
    if not memo.unplanned then redis.call('ZREM', NEXT, lane) end
    return
  end
  memo.unplanned = false
  redis.call('ZADD', NEXT, whole(at), lane)
  pump.till = math.min(pump.till, at + pump.LATE_US)
  plan(at)
end
function pump.planned()                               -- how many lanes are in the plan
  local n = redis.call('ZCARD', NEXT)
  memo.unplanned = n == 0
  return n
end
function pump.replan()                                -- plans all of them for now, after the clock was set back
  for _, lane in ipairs(redis.call('ZRANGE', NEXT, 0, -1)) do redis.call('ZADD', NEXT, whole(now), lane) end
end
-- The pump looks at the row of a parent as it looks at a lane. In `next` the row has the parent's name behind a newline, which no
-- lane's name contains.
local function row_of(parent) return '\n' .. parent end
function wake(parent)
  if redis.call('EXISTS', turns_key(parent)) == 1 then note(row_of(parent), now) end
end
-- How long a call may be out before its lease must be renewed, µs. known: the value, if the caller has just read or written it
local function lease_us(known)
  memo.lease = known or memo.lease or tonumber(redis.call('HGET', PUMP, 'lease') or '30e6')
  return memo.lease
end
