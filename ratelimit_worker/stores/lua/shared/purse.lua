-- Budgets of money: of a lane (its parents' too), a tenant, a context, and of all calls; each for a day, a month or both.

-- A purse is one of them, named `all`, `lane:L`, `tenant:T` or `context:C`: what may be spent, and what was. A call is released
-- while money is left in each of its purses. It takes what such calls usually cost (r[MONEY][1], or the purse's own mean if that
-- is unknown); when its attempt has ended, what that really cost counts in place of it. So at most this is spent beyond a budget:
-- the last call, and what the calls that are out cost more than expected. All money is in billionths of a dollar.
-- A call whose worker died keeps what it took: its provider may have charged it.
local purse = {BUDGETS = key('budgets'), ALL = 'all', TTL_S = 5443200, AT_ONCE = 100, WOKEN = 16, NANO = 1e9,
  FIELDS = {'day', 'day_spent', 'month', 'month_spent', 'mean', 'answers'}, MOST_ANSWERS = 20, EMPTY = {}, WAITS = 0, RAISES = 2}
function purse.spent_key(name) return key('spent:') .. name end
function purse.unfunded_key(name) return key('unfunded:') .. name end
function purse.strict_key(lane) return key('strict:') .. lane end
-- told: {usd_per_day, usd_per_month, steps}, as Python writes it · whole: when spent it holds whole lanes, else single calls
function purse.load(name, told, whole)
  local h = redis.call('HMGET', purse.spent_key(name), unpack(purse.FIELDS))
  local p = {name = name, zone = told.steps, whole = whole, most = {told.usd_per_day or false, told.usd_per_month or false}}
  p.day = DAY.number(p.zone, now)
  p.month = DAY.month(p.day)
  p.new = tonumber(h[1]) ~= p.day
  p.spent = {not p.new and tonumber(h[2]) or 0, tonumber(h[3]) == p.month and tonumber(h[4]) or 0}
  p.mean, p.answers = tonumber(h[5]) or 0, tonumber(h[6]) or 0
  memo.purses[name] = p
  return p
end
function purse.write(p)
  local k = purse.spent_key(p.name)
  redis.call('HSET', k, 'day', whole(p.day), 'day_spent', whole(p.spent[1]), 'month', whole(p.month), 'month_spent', whole(p.spent[2]),
    'mean', whole(p.mean), 'answers', whole(p.answers))
  if p.new then redis.call('EXPIRE', k, purse.TTL_S) end
  p.new = false
end
-- Whether none of these keys exists. The same command asks whether there are budgets, for purse.of: mostly there are none.
function purse.absent(...)
  local any = redis.call('EXISTS', purse.BUDGETS, ...) > 0
  if any and redis.call('EXISTS', ...) > 0 then return false end
  memo.budgets = any
  return true
end
-- The purses that a call of this lane takes from. r nil: no particular call, so only those of the lane, its parents and all calls
function purse.of(L, r)
  local list = purse.EMPTY
  local function add(name, told, whole)
    if list == purse.EMPTY then list = {} end
    list[#list + 1] = memo.purses[name] or purse.load(name, told, whole)
  end
  if L.money then add('lane:' .. L.name, L.money, true) end
  for _, P in ipairs(L.parents or purse.EMPTY) do
    if P.money then add('lane:' .. P.name, P.money, true) end
  end
  if memo.budgets == nil then memo.budgets = redis.call('EXISTS', purse.BUDGETS) == 1 end
  if not memo.budgets then return list end
  local names, context = {purse.ALL}, r and r[MONEY] and r[MONEY][3] or ''
  if r and r[TENANT] ~= '' then names[#names + 1] = 'tenant:' .. r[TENANT] end
  if context ~= '' then names[#names + 1] = 'context:' .. context end
  for i, told in ipairs(redis.call('HMGET', purse.BUDGETS, unpack(names))) do
    if told then add(names[i], cjson.decode(told), i == 1) end
  end
  return list
end
-- -> when there will be money in it again, µs (nil: some is left now), and which of its two budgets is spent: 1 day, 2 month
function purse.empty_until(p)
  if p.most[2] and p.spent[2] >= p.most[2] * purse.NANO then
    return DAY.ends(p.zone, DAY.first_of(p.month + 1) - 1), 2
  end
  if p.most[1] and p.spent[1] >= p.most[1] * purse.NANO then return DAY.ends(p.zone, p.day), 1 end
end
-- -> the bar of a call with these purses; nil: money is left in all of them. A purse of whole lanes counts before others.
function purse.bar(list)
  local found
  for _, p in ipairs(list) do
    local at, which = purse.empty_until(p)
    if at and (not found or (p.whole and not found.purse.whole) or (p.whole == found.purse.whole and at > found.at)) then
      found = {kind = 'budget', at = at, purse = p, which = which, alone = not p.whole}
    end
  end
  return found
end
function purse.reserve(list, r)
  local nano = r[MONEY] and r[MONEY][1] > 0 and r[MONEY][1] or list[1] and list[1].mean
  local taken = {nano}
  for _, p in ipairs(list) do
    p.spent[1], p.spent[2] = p.spent[1] + nano, p.spent[2] + nano
    purse.write(p)
    taken[#taken + 1] = p.name
  end
  r[MONEY], r[RESERVED] = r[MONEY] or false, #taken > 1 and taken
end
function purse.named(name)                             -- nil: no such budget is set any more
  if memo.purses[name] then return memo.purses[name] end
  local lane = string.match(name, '^lane:(.*)$')
  local told = lane and redis.call('HGET', lane_key(lane), FIELD.BOUNDS) or (not lane and redis.call('HGET', purse.BUDGETS, name))
  told = told and cjson.decode(told)
  if told and (told.usd_per_day or told.usd_per_month) then return purse.load(name, told, lane ~= nil or name == purse.ALL) end
end
-- by: how much more (or less) than was taken at the call's release; at: when that was, µs. Yesterday's does not count today.
function purse.change(p, by, at)
  local day = DAY.number(p.zone, at)
  if day == p.day then p.spent[1] = math.max(0, p.spent[1] + by) end
  if DAY.month(day) == p.month then p.spent[2] = math.max(0, p.spent[2] + by) end
end
function purse.learn(p, nano)
  p.answers = math.min(purse.MOST_ANSWERS, p.answers + 1)
  p.mean = p.mean + (nano - p.mean) / p.answers
end
-- An attempt has ended, and cost `nano`; nil: it was not made, so nothing is learned from it
function purse.settle(r, nano)
  local taken = r[RESERVED]
  for i = 2, taken and #taken or 0 do
    local p = purse.named(taken[i])
    if p then
      purse.change(p, (nano or 0) - taken[1], r[TICKET][2])
      if nano and nano > 0 then purse.learn(p, nano) end
      purse.write(p)
      purse.fund(p)
    end
  end
  if taken then r[RESERVED] = false end
end
-- If money is left in a purse, lanes or single calls (which are in `due` until then) that wait for it are woken.
-- -> how many. O(woken · log waiting)
function purse.fund(p)
  local woken, most = 0, p.whole and purse.AT_ONCE or purse.WOKEN
  if purse.empty_until(p) then return 0 end
  for _ = 1, 2 * purse.AT_ONCE do                      -- more than `most`, since some are gone
    local one = woken < most and redis.call('ZPOPMIN', purse.unfunded_key(p.name))[1]
    if not one then return woken end
    if p.whole then
      note(one, now)
      woken = woken + 1
    else
      local r = record(one)
      if r and r[VERSION] <= SCHEMA and redis.call('ZADD', due_key(r[LANE], r[QUEUE]), 'XX', 'CH', whole(now), one) == 1 then
        note(r[LANE], now)
        woken = woken + 1
      end
    end
  end
  return woken
end
function purse.free(name)                              -- the same for a budget that is not set any more
  local whole = name == purse.ALL or string.sub(name, 1, 5) == 'lane:'
  return purse.fund({name = name, whole = whole, most = {false, false}, spent = {0, 0}})
end
function purse.await(p, one, at)                       -- a lane or a call waits for money in it, until `at` at the latest
  local k = purse.unfunded_key(p.name)
  redis.call('ZADD', k, 'NX', whole(now), one)
  redis.call('EXPIRE', k, math.ceil((at - now + DAY_US) / 1e6))
end
-- Calls that are to fail rather than wait for money are in a set of their lane (`strict:LANE`) while they wait.
function purse.fails(r) return r[MONEY] and r[MONEY][2] ~= purse.WAITS end
function purse.strict(ref, r)
  if not purse.fails(r) then return end
  local k, ttl_s = purse.strict_key(r[LANE]), ttl_of(r)
  redis.call('ZADD', k, whole(now), ref)
  if redis.call('TTL', k) < ttl_s then redis.call('EXPIRE', k, ttl_s) end
end
function purse.refusal(held)                           -- what such a call gets, as flow/call/answers.py reads it
  count('over_budget')
  return cjson.encode({error = {'BudgetSpent', {held.purse.name, math.floor(held.at / 1e6)}}})
end
