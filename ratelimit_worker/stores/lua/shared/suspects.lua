-- Calls that ran when their worker died: one of them killed it. Each is a suspect until it ends well, and no two are out
-- at once (a sixteenth of them, where there are more than that), so that the one that kills again takes no other suspect
-- along. Those that must wait for their turn do so as for a time.
local suspect = {AGAIN_US = 1e6, PART = 16}            -- it asks again after; of more than PART, a PARTth may try at once
function suspect.mark(ref, out)                        -- it is one; out: 1, it waits: 0
  redis.call('ZADD', SUSPECTS, out, ref)
  redis.call('EXPIRE', SUSPECTS, TTL_S.LANE)
end
function suspect.may_go()                              -- whether a suspect may leave its lane now
  local most = math.max(1, math.ceil(redis.call('ZCARD', SUSPECTS) / suspect.PART))
  return redis.call('ZCOUNT', SUSPECTS, 1, 1) < most
end
function suspect.wake_next()                           -- one is out no more: one that waits need not ask later
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', SUSPECTS, 0, 0, 'LIMIT', 0, suspect.PART)) do
    local r = record(ref)
    if r and redis.call('ZADD', due_key(r[LANE], r[QUEUE]), 'XX', 'CH', int(now), ref) == 1 then
      note(r[LANE], now)
      return
    end
  end
end
function suspect.back(ref)                             -- out no more: its worker is gone, or its turn is over
  if redis.call('ZADD', SUSPECTS, 'XX', 'CH', 0, ref) == 1 then suspect.wake_next() end
end
function suspect.clear(ref, r)
  if r[LOST] > 0 and redis.call('ZREM', SUSPECTS, ref) == 1 then suspect.wake_next() end
end
