-- The ledger and what counts the same: the way in, and the way out. Nobody else writes `busy` and `oncrews`.

local ledger = {}
-- The call is out until it is renewed or its lease ends; r[CREW] is its crew.
function ledger.enter(tag, r)
  redis.call('ZADD', LEDGER, int(now + lease_us()), tag)
  redis.call('ZADD', out_key(r[LANE]), 0, tag)         -- 0: not begun, 1: begun
  for i = 1, r[PARENTS] and #r[PARENTS] or 0 do
    redis.call('ZADD', out_key(r[PARENTS][i]), 0, tag)
    redis.call('SADD', key('busy'), r[PARENTS][i])
  end
  redis.call('SADD', crew.taken_key(r), tag)
  if not memo.busy[r[LANE]] then redis.call('SADD', key('busy'), r[LANE]) end  -- a lane or crew with calls out is in these;
  local at = crew.at(r[CREW], r[QUEUE])
  if not memo.oncrew[at] then                          -- the sweep drops the others
    redis.call('SADD', key('oncrews'), at)
    redis.call('HSET', crew.SUMS, 'on:' .. r[QUEUE], r[CREW])  -- a hint, until slots are counted anew
    redis.call('EXPIRE', crew.SUMS, 60)
  end
  memo.busy[r[LANE]], memo.oncrew[at] = true, true
end
-- The call is no longer out -> whether it was in the ledger, and whether it had begun. A permit that no start has used
-- goes back, here and nowhere else.
function ledger.leave(tag, r)
  local there = redis.call('ZREM', LEDGER, tag) == 1
  redis.call('ZREM', out_key(r[LANE]), tag)
  if redis.call('SREM', crew.taken_key(r), tag) == 0 then aside.leave(tag) end
  r[CREW] = nil
  local parents = r[PARENTS]
  for i = 1, parents and #parents or 0 do redis.call('ZREM', out_key(parents[i]), tag) end
  if not there then return false end
  if r[LOST] > 0 then suspect.back((split(tag))) end
  if r[PERMIT] == TAKEN then
    local L = load(r[LANE], parents or {})
    refund(L, r[COST], r[TICKET][2])
    save(L)
    -- the next may have waited for that permit: its time was planned without it
    if redis.call('ZSCORE', NEXT, r[LANE]) then note(r[LANE], now) end
  end
  for i = 1, parents and #parents or 0 do wake(parents[i]) end
  r[PARENTS] = nil
  local begun = r[PERMIT] == USED
  r[PERMIT] = NONE
  return true, begun
end
function ledger.idle(lane)                             -- nothing of it is out
  memo.busy[lane] = false
  redis.call('SREM', key('busy'), lane)
end
function ledger.idle_crew(at)
  memo.oncrew[at] = false
  redis.call('SREM', key('oncrews'), at)
  redis.call('HDEL', crew.SUMS, 'on:' .. string.match(at, '^[^:]*:(.*)$'))
end
function ledger.adopt(tag, r, name)                    -- it was out of no crew: an older version had released it
  r[CREW] = name
  redis.call('SADD', crew.taken_key(r), tag)
  redis.call('SADD', key('oncrews'), crew.at(name, r[QUEUE]))
end
