-- Put a call into its lane; release it at once when it is the first there and pace, gate and room allow. O(log waiting).
-- A call that claims is first looked up: answered before, it needs no permit; the same is on its way, it follows that one.
-- ARGV  now µs · lane · queue · ref wished · publication · class · tenant · weight · cost of 4 dimensions ·
--       due in µs (0: now) · deadline in µs · most waiting (0: no bound) · tries so far · attempts so far · message · body ·
--       claim, packed ('': none; ASKED in shared/claims.lua) · shed in an emergency (0: no, 1: yes, 2: yes, and refused at once) ·
--       how its result is stored, packed ('': the caller does; {key, text before the value, text after, TTL in s, 0: none}) ·
--       for the case that the lane is new: most lanes (0: no bound) · fields and values of its hash … (none: the caller
--       thinks it is not)
-- The publication is pub:what it asks:how (o: a call is made, c: a canvas or a stock producer goes on, a: a call goes on, which
-- knows its id to be taken); one without what it asks is compared as a whole.
-- returns  {1 released | 0 waits | 2 was there already | -1 lane full | -2 the lane is new, say its fields |
--          -4 the id is another call's | -5 the lane is new, and there are too many, ref}, or
--          {3, ref, answer, 1: and that is its result | 0}: it is answered; {4, ref, answer packed}: the call is to come again with
--          that, unpacked; {-3, ref, mode}: it is shed; nothing else was stored; an error when the message has
--          no place for a tag, or REFS messages of this task id are in lanes
local lane, queue, wished, pub, class, tenant = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local cost = {tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])}
local due, deadline, bound = now + tonumber(ARGV[13]), now + tonumber(ARGV[14]), tonumber(ARGV[15])
local message = ARGV[18]
local claim, sheds = ARGV[20] ~= '' and cmsgpack.unpack(ARGV[20]), ARGV[21]
local fp = claim and claim[ASKED.FP]
local ttl_s = math.ceil((deadline - now + DAY_US) / 1e6)

-- Who makes a call once more, since nobody told whether it was accepted, makes the same call: it is known by what it asks.
-- -> the reference that is free for it; nil, and what is returned instead
local function reference()
  if not string.find(message, '"delivery_tag": "@"', 1, true) then
    return nil, redis.error_reply('ERR the message has no place for a delivery tag')
  end
  local second, other = wished .. '~1', false
  if redis.call('EXISTS', call_key(wished), key('done:') .. wished, call_key(second), key('done:') .. second) == 0 then
    return wished
  end
  local asks, how = string.match(pub, '^[^:]*:(%x+):(%a)$')
  for _, at in ipairs(how and how ~= 'a' and {wished, second} or {}) do
    local there = memory.of(at)
    local theirs = there and string.match(there, '^[^:]*:(%x+)')
    if theirs == asks or (how == 'o' and there == memory.HELD) then return nil, {2, at} end
    other = other or (how == 'o' and theirs)
  end
  if other then return nil, {-4, wished} end
  -- a task id may be sent again while it still runs (retry, replace): a message has a reference of its own
  for i = 1, KNOWN.REFS do
    local ref = i == 1 and wished or wished .. '~' .. (i - 1)
    local there, r = memory.of(ref)
    if there == pub then return nil, {2, ref} end      -- our reply was lost
    if not r then return ref end
  end
  return nil, redis.error_reply('ERR too many messages of one task id')
end
-- What the claim says of the call -> {answer; leads; follows}; nil, and the answer for a caller who takes it at once, or
-- unpacks it and comes again
local function claimed(L, shed)
  local c = {}
  if not fp then return c end
  if claim[ASKED.AGAIN] == 1 then                      -- the same call goes on: it asks nobody, and keeps what it has claimed
    local leader = claim[ASKED.JOIN] == 1 and redis.call('GET', claim_key(fp))
    c.leads = leader and not shed and (leader == wished or string.sub(leader, 1, #wished + 1) == wished .. '~')
    return c
  end
  if (claim[ASKED.ANSWER] or '') ~= '' then            -- the caller has unpacked it
    c.answer = claim[ASKED.ANSWER]
    return c
  end
  local packed
  c.answer, packed = cached(claim, L.mode)
  if c.answer and (packed or claim[ASKED.AT_ONCE] == 1) then return nil, c.answer end
  if not c.answer and not shed and claim[ASKED.JOIN] == 1 then
    local leader, r = leader_for(fp, queue)
    c.leads = not leader
    -- more than that, and a call asks for itself alone
    c.follows = leader and redis.call('ZCARD', followers_key(fp)) < FOLLOWERS
    if c.follows then hurry(leader, r, class) end
  end
  return c
end
-- An answer that the caller takes at once is the result of the call too: whoever asks for that finds it -> 1 when it is stored;
-- 0: the caller has to (it is no plain value, or results have a user of their own)
local function told(answer)
  local form = ARGV[22] ~= '' and cmsgpack.unpack(ARGV[22])
  local head = '{"value": '
  if not form or string.sub(answer, 1, #head) ~= head or string.sub(answer, -1) ~= '}' then return 0 end
  local text = form[2] .. string.sub(answer, #head + 1, -2) .. form[3]
  local stored = redis.pcall('SET', form[1], text, unpack(form[4] > 0 and {'EX', form[4]} or {}))
  if stored.err or type(redis.pcall('PUBLISH', form[1], text)) == 'table' then return 0 end
  return 1
end
local function is_full(queues)
  local waiting = 0
  for _, q in ipairs(queues) do
    waiting = waiting + redis.call('ZCARD', wait_key(lane, q)) + redis.call('ZCARD', due_key(lane, q))
  end
  if waiting < bound then return false end
  count('refused_full')
  return true
end
local function new_record()
  local r = {SCHEMA, lane, queue, -1, class, tenant, cost, now, deadline, 0, tonumber(ARGV[16]), 0, NONE, 0,
    {0, 0, 0, 0, 0, 0}, pub, now, tonumber(ARGV[17]), tonumber(ARGV[8]), 1e15, fp or false}
  local degrades = (fp and (claim[ASKED.STALE_MS] or 0) > 0 and STALE or 0) + (sheds ~= '0' and SHED or 0)
  if degrades > 0 then r[DEGRADES] = degrades end
  return r
end
-- What is stored beside the record; with it, and with the fields of its lane and its parents, it ends.
local function store(L, ref, r, leads, waits)
  redis.call('EXPIRE', call_key(ref), ttl_s)
  redis.call('SET', key('payload:') .. ref, ARGV[19], 'EX', ttl_s)
  if waits then redis.call('ZADD', EXPIRY, int(deadline), ref) end  -- what is out is entered when it comes back
  if fp then redis.call('HSET', call_key(ref), 'c', ARGV[20]) end
  if leads then lead(ref, r) end
  for _, name in ipairs(ttl_s > TTL_S.LANE and {lane, unpack(L.names or {})} or {}) do
    if redis.call('TTL', lane_key(name)) < ttl_s then redis.call('EXPIRE', lane_key(name), ttl_s) end
  end
end
-- Nothing waits, and nothing holds it back: the way past the lane, at half the cost -> whether it went
local function pass(L, ref, r, queues, leads)
  if due > now or #queues > 0 or admits_in(L, cost) ~= 0 then return false end  -- asked first, since it needs no look-up
  local S = step.of(L, queues, 1)
  local call = {ref = ref, queue = queue, r = r, message = message, cost = cost, task = crew.task_of(message), new = true}
  if bar(S, call) then return false end
  r[SCORE] = L.v + band(class)                         -- it takes nobody's turn; if it comes back, it is the first
  let_go(S, call)
  store(L, ref, r, leads)
  save(L)
  return true
end
-- Into its place or to its time; the first there may go at once -> 1 when it went
local function take_place(ref, r, queues)
  if due > now then
    wait_until(due, ref, r)
    local at = redis.call('ZSCORE', NEXT, lane)
    if not at or tonumber(at) > due then note(lane, due) end
    return 0
  end
  local stands = false                                 -- whether calls of this queue wait already
  for _, q in ipairs(queues) do stands = stands or q == queue end
  wait(ref, r, 0, stands)
  local moved = 0
  if redis.call('ZRANK', wait_key(lane, queue), ref) == 0 then moved = release(lane, 1) else overdue() end
  return moved > 0 and not redis.call('ZSCORE', wait_key(lane, queue), ref) and moved or 0  -- else another's turn came
end

local ref, instead = reference()
if not ref then return instead end
local L = load(lane)
if not L.schema then
  if #ARGV < 23 then return {-2, ref} end
  if make(lane, 24, tonumber(ARGV[23])) == nil then return {-5, ref} end
  L = load(lane)
end
local shed = sheds ~= '0' and DEGRADED[L.mode] and due <= now
local c, at_once = claimed(L, shed)
if not c then return {claim[ASKED.AT_ONCE] == 1 and 3 or 4, ref, at_once, told(at_once)} end
if shed and not c.answer then
  c.answer = shedding(L)
  if sheds == '2' then return {-3, ref, L.mode} end
end
if not L.was then save(L) end
local queues = redis.call('SMEMBERS', queues_key(lane))
local waits_here = not c.answer and not c.follows      -- for its own turn, or for its time
if bound > 0 and waits_here and is_full(queues) then return {-1, ref} end
local r = new_record()
if waits_here and pass(L, ref, r, queues, c.leads) then return {1, ref} end
r[BORN] = released()
if waits_here and due <= now then place(L, r) end
keep(ref, r, message)
store(L, ref, r, c.leads, true)
if waits_here then return {take_place(ref, r, queues), ref} end
if c.answer then
  answered(ref, r, c.answer)
else
  count('joined')
  follow(ref, r)
end
return {0, ref}
