-- How calls enter the ledger and leave it, together with the other sets of calls that are out. Only this file writes `busy` and
-- `oncrews`.

local ledger = {}
-- The call is out until it leaves, or its lease ends without being renewed. r[CREW] is its crew.
function ledger.enter(tag, r)
  batch.put('ZADD', LEDGER, whole(now + lease_us()), tag)
  batch.put('ZADD', out_key(r[LANE]), 0, tag)          -- 0: not begun, 1: begun
  for i = 1, r[PARENTS] and #r[PARENTS] or 0 do
    redis.call('ZADD', out_key(r[PARENTS][i]), 0, tag)
    redis.call('SADD', key('busy'), r[PARENTS][i])
  end
  batch.put('SADD', crew.taken_key(r), tag)
  if memo.batch and memo.batch.alive then memo.batch.alive = memo.batch.alive + 1 end
  if not memo.busy[r[LANE]] then redis.call('SADD', key('busy'), r[LANE]) end  -- `busy` and `oncrews` hold those with calls out;
  local at = crew.at(r[CREW], r[QUEUE])
  if not memo.oncrew[at] then                          -- the sweep removes the others
    redis.call('SADD', key('oncrews'), at)
    redis.call('HSET', crew.SUMS, 'on:' .. r[QUEUE], r[CREW])  -- saves SADDs, until slots are counted anew
    redis.call('EXPIRE', crew.SUMS, 60)
  end
  memo.busy[r[LANE]], memo.oncrew[at] = true, true
end
function ledger.strike(tag) return redis.call('ZREM', LEDGER, tag) == 1 end
-- The call is not out any more -> whether it was in the ledger, and whether it had begun. If it had not begun, its permit is
-- refunded: here and nowhere else. struck: it has been struck from the ledger in this step.
function ledger.leave(tag, r, struck)
  local there = struck or ledger.strike(tag)
  redis.call('ZREM', out_key(r[LANE]), tag)
  if redis.call('SREM', crew.taken_key(r), tag) == 0 then aside.leave(tag) end
  local parents, none = r[PARENTS], nil
  if r[MONEY] then none = false end                    -- no holes before it
  r[CREW] = none
  for i = 1, parents and #parents or 0 do redis.call('ZREM', out_key(parents[i]), tag) end
  if not there then return false end
  if r[LOST] > 0 then suspect.back((split(tag))) end
  if r[PERMIT] == TAKEN then
    local L = load(r[LANE], parents or {})
    refund(L, r[COST], r[TICKET][2])
    save(L)
    purse.settle(r)
    -- the lane's next look was planned without the refund
    if redis.call('ZSCORE', NEXT, r[LANE]) then note(r[LANE], now) end
  end
  for i = 1, parents and #parents or 0 do wake(parents[i]) end
  -- Of a call whose worker died, budgets of money keep what it took.
  r[PARENTS], r[MONEY], r[RESERVED] = none, r[MONEY] or none, none
  local begun = r[PERMIT] == USED
  r[PERMIT] = NONE
  return true, begun
end
function ledger.idle(lane)                             -- the lane has nothing out
  memo.busy[lane] = false
  redis.call('SREM', key('busy'), lane)
end
function ledger.idle_crew(at)
  memo.oncrew[at] = false
  redis.call('SREM', key('oncrews'), at)
  redis.call('HDEL', crew.SUMS, 'on:' .. string.match(at, '^[^:]*:(.*)$'))
end
function ledger.adopt(tag, r, name)                    -- an older version had released the call; it counts for this crew now
  r[CREW] = name
  redis.call('SADD', crew.taken_key(r), tag)
  redis.call('SADD', key('oncrews'), crew.at(name, r[QUEUE]))
end
