-- Put a call into its lane; release it at once when it is the first there and pace, gate and room allow. O(log waiting).
-- A call that claims is first looked up: answered before, it needs no permit; the same is on its way, it follows that one.
-- ARGV  now µs · lane · queue · ref wished · publication · class · tenant · weight · cost of 4 dimensions ·
--       due in µs (0: now) · deadline in µs · most waiting (0: no bound) · tries so far · attempts so far · message · body ·
--       claim, packed ('': none; ASKED in shared/claims.lua) · shed in an emergency (0: no, 1: yes, 2: yes, and refused at once) ·
--       for the case that the lane is new: most lanes (0: no bound) · fields and values of its hash … (none: the caller
--       thinks it is not)
-- The publication is pub:what it asks:how (o: a call is made, c: a canvas or a stock producer goes on, a: a call goes on, which
-- knows its id to be taken); one without what it asks is compared as a whole.
-- returns  {1 released | 0 waits | 2 was there already | -1 lane full | -2 the lane is new, say its fields |
--          -4 the id is another call's | -5 the lane is new, and there are too many, ref}, or
--          {3, ref, answer}: it is answered, {-3, ref, mode}: it is shed; nothing was stored; an error when the message has
--          no place for a tag, or REFS messages of this task id are in lanes
local lane, queue, ref, pub, class, tenant = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local cost = {tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])}
local due, deadline, bound = now + tonumber(ARGV[13]), now + tonumber(ARGV[14]), tonumber(ARGV[15])
if not string.find(ARGV[18], '"delivery_tag": "@"', 1, true) then
  return redis.error_reply('ERR the message has no place for a delivery tag')
end
-- Who makes a call once more, since nobody told whether it was accepted, makes the same call: it is known by what it asks.
local wished, second, other = ref, ref .. '~1', false
local asks, how = string.match(pub, '^[^:]*:(%x+):(%a)$')
if redis.call('EXISTS', call_key(ref), key('done:') .. ref, call_key(second), key('done:') .. second) > 0 then
  for _, at in ipairs(how and how ~= 'a' and {wished, second} or {}) do
    local there = memory.of(at)
    local theirs = there and string.match(there, '^[^:]*:(%x+)')
    if theirs == asks or (how == 'o' and there == memory.HELD) then return {2, at} end
    other = other or (how == 'o' and theirs)
  end
  if other then return {-4, ref} end
  -- a task id may be sent again while it still runs (retry, replace): a message has a reference of its own
  for i = 1, REFS + 1 do
    if i > REFS then return redis.error_reply('ERR too many messages of one task id') end
    ref = i == 1 and wished or wished .. '~' .. (i - 1)
    local there, r = memory.of(ref)
    if there == pub then return {2, ref} end           -- our reply was lost
    if not r then break end
  end
end
local L = load(lane)
if #ARGV < 22 and not L.schema then return {-2, ref} end
if #ARGV >= 22 and not L.schema then
  if make(lane, 23, tonumber(ARGV[22])) == nil then return {-5, ref} end
  L = load(lane)
end
local claim = ARGV[20] ~= '' and cmsgpack.unpack(ARGV[20])
local fp, answer, leads, follows = claim and claim[ASKED.FP], nil, false, false
local shed = ARGV[21] ~= '0' and DEGRADED[L.mode] and due <= now
if fp then
  if claim[ASKED.AGAIN] == 1 then                      -- the same call goes on: it asks nobody, and keeps what it has claimed
    local leader = claim[ASKED.JOIN] == 1 and redis.call('GET', claim_key(fp))
    leads = leader and not shed and (leader == wished or string.sub(leader, 1, #wished + 1) == wished .. '~')
  else
    answer = cached(claim, L.mode)
    if answer and claim[ASKED.AT_ONCE] == 1 then return {3, ref, answer} end
    if not answer and not shed and claim[ASKED.JOIN] == 1 then
      local leader, r = leader_for(fp, queue)
      leads = not leader
      -- more than that, and a call asks for itself alone
      follows = leader and redis.call('ZCARD', followers_key(fp)) < FOLLOWERS
      if follows then hurry(leader, r, class) end
    end
  end
end
if shed and not answer then
  answer = shedding(L)
  if ARGV[21] == '2' then return {-3, ref, L.mode} end
end
if not L.was then save(L) end
local queues = redis.call('SMEMBERS', queues_key(lane))
if bound > 0 and not answer and not follows then
  local waiting = 0
  for _, q in ipairs(queues) do
    waiting = waiting + redis.call('ZCARD', wait_key(lane, q)) + redis.call('ZCARD', due_key(lane, q))
  end
  if waiting >= bound then
    count('refused_full')
    return {-1, ref}
  end
end
local r = {SCHEMA, lane, queue, -1, class, tenant, cost, now, deadline, 0, tonumber(ARGV[16]), 0, NONE, 0,
  {0, 0, 0, 0, 0, 0}, pub, now, tonumber(ARGV[17]), tonumber(ARGV[8]), 1e15, fp or false}
local degrades = (fp and (claim[ASKED.STALE_MS] or 0) > 0 and STALE or 0) + (ARGV[21] ~= '0' and SHED or 0)
if degrades > 0 then r[DEGRADES] = degrades end
local ttl_s = math.ceil((deadline - now + DAY_US) / 1e6)
-- nothing waits: the way past the lane, at half the cost
local past, c = due <= now and not answer and not follows and #queues == 0 and admits_in(L, cost) == 0 and clear(L, cost)
if past then
  local own, out = own_room(L)
  past = own > 0 and room(L, queue, out) > 0
  if past then c = crew.pick(queue, crew.task_of(ARGV[18]), (not L.unlimited or L.parents) and ahead(L) or 0) end
  past = c ~= nil
end
if past then
  r[SCORE] = L.v + band(class)                         -- it takes nobody's turn; if it comes back, it is the first
else
  r[BORN] = released()
  if due <= now and not answer and not follows then place(L, r) end
end
if past then
  let_go(L, ref, r, lease_us(), c, ARGV[18], true)
  if probes.on(L) then probes.went(L, queue, ARGV[18]) end
else
  keep(ref, r, ARGV[18])
end
redis.call('EXPIRE', call_key(ref), ttl_s)
redis.call('SET', key('payload:') .. ref, ARGV[19], 'EX', ttl_s)
redis.call('ZADD', EXPIRY, int(deadline), ref)
if fp then redis.call('HSET', call_key(ref), 'c', ARGV[20]) end
if leads then lead(ref, r) end
if ttl_s > TTL_S.LANE then                             -- a call must not outlive its lane's pace, nor its parents'
  for _, name in ipairs({lane, unpack(L.names or {})}) do
    if redis.call('TTL', lane_key(name)) < ttl_s then redis.call('EXPIRE', lane_key(name), ttl_s) end
  end
end
if past then
  save(L)
  return {1, ref}
end
if answer then
  answered(ref, r, answer)
  return {0, ref}
end
if follows then
  count('joined')
  follow(ref, r)
  return {0, ref}
end
if due > now then
  wait_until(due, ref, r)
  local at = redis.call('ZSCORE', NEXT, lane)
  if not at or tonumber(at) > due then note(lane, due) end
  return {0, ref}
end
local stands = false                                   -- whether calls of this queue wait already
for _, q in ipairs(queues) do stands = stands or q == queue end
wait(ref, r, 0, stands)
local moved = 0
if redis.call('ZRANK', wait_key(lane, queue), ref) == 0 then moved = release(lane, 1) else overdue() end
if moved > 0 and redis.call('ZSCORE', wait_key(lane, queue), ref) then moved = 0 end  -- another's turn came
return {moved, ref}
