-- Put a call into its lane, and release it at once if it is the first there and pace, gate and room allow. O(log waiting).
-- If it has a claim: if an answer to the same call is kept, it gets that and needs no permit; if the same call is on its way, it
-- follows that one.
-- ARGV  now µs · lane · queue · ref wished · publication · class · tenant · weight · cost of 4 dimensions ·
--       due in µs (0: now) · deadline in µs · most waiting (0: no bound) · tries so far · attempts so far · message · body ·
--       claim, packed ('': none; positions in ASKED) · shed in an emergency (0: no, 1: yes, 2: yes, and refused at once) ·
--       how its result is stored, packed ('': the caller does it; {key, text before the value, text after, TTL in s, 0: none}) ·
--       money, packed ('': {0, 0, ''}; MONEY in contracts/call.py) ·
--       and only if the lane seems new to the caller: most lanes (0: no bound) · fields and values of its hash …
-- The publication is ID:DIGEST:HOW. ID is the same for every attempt to publish one message; DIGEST is of what the call asks;
-- HOW is o (an agent makes the call), c (a canvas goes on, or a stock producer has sent it) or a (the same call goes on, so its
-- id may be taken). A publication without the two last parts is compared as a whole.
-- returns  {1 released | 0 waits | 2 it was there already | -1 the lane is full | -2 the lane is new: repeat with its fields |
--          -4 the id belongs to another call | -5 the lane is new, and there are too many lanes, ref}; or, with nothing stored,
--          {3, ref, kept answer, 1: that is stored as its result | 0, 1: the caller is to have it renewed | 0} · {4, …: as 3,
--          but compressed: repeat with the unpacked answer in the claim} · {-3, ref, mode: it is shed} · {-6, ref, budget of
--          money that is spent, until s} · an error if the message has no place for a tag, or if REFS messages of this task id
--          are in lanes
local lane, queue, wished, pub, class, tenant, cost, due, deadline, bound, message, claim, sheds, fp, ttl_s  -- of this run
local function take_arguments()
  lane, queue, wished, pub, class, tenant = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  cost = {tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])}
  due, deadline, bound, message = now + tonumber(ARGV[13]), now + tonumber(ARGV[14]), tonumber(ARGV[15]), ARGV[18]
  claim, sheds = ARGV[20] ~= '' and cmsgpack.unpack(ARGV[20]), ARGV[21]
  fp, ttl_s = claim and claim[ASKED.FP], math.ceil((deadline - now + DAY_US) / 1e6)
end

-- A caller that did not learn whether its call was accepted makes it again: that is the same call, recognised by the digest.
-- -> a free reference for the call; or nil, and the answer of the script
local function reference()
  if not string.find(message, '"delivery_tag": "@"', 1, true) then
    return nil, redis.error_reply('ERR the message has no place for a delivery tag')
  end
  local second, other = wished .. '~1', false
  if purse.absent(call_key(wished), key('done:') .. wished, call_key(second), key('done:') .. second) then return wished end
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
local function is_full(queues)
  if #queues == 0 then return false end
  -- As many wait on this queue in all lanes together: if that is within the bound, nothing else has to be counted.
  if #queues == 1 and queues[1] == queue and census.enter(queue) <= bound then return false end
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
  if degrades > 0 or ARGV[23] ~= '' then r[DEGRADES] = degrades > 0 and degrades end
  if ARGV[23] ~= '' then r[PARENTS], r[CREW], r[MONEY] = false, false, cmsgpack.unpack(ARGV[23]) end
  return r
end
-- Stores what belongs to the record, and gives all of it, the lane and its parents a TTL that covers the call's deadline.
local function store(L, ref, r, leads, waits)
  redis.call('EXPIRE', call_key(ref), ttl_s)
  redis.call('SET', key('payload:') .. ref, ARGV[19], 'EX', ttl_s)
  if waits then redis.call('ZADD', EXPIRY, whole(deadline), ref) end  -- a released call is entered when it comes back
  if fp then redis.call('HSET', call_key(ref), 'c', ARGV[20]) end
  if leads then lead(ref, r) end
  for _, name in ipairs(ttl_s > TTL_S.LANE and {lane, unpack(L.names or {})} or {}) do
    if redis.call('TTL', lane_key(name)) < ttl_s then redis.call('EXPIRE', lane_key(name), ttl_s) end
  end
end
-- If nothing waits and nothing holds the call back, it is released without entering the lane first, at half the cost
-- -> whether it was
local function pass(L, ref, r, queues, leads)
  if due > now or #queues > 0 or admits_in(L, cost) ~= 0 then return false end  -- first, since it needs no look-up
  local S = step.of(L, {queue}, 1)
  local call = {ref = ref, queue = queue, r = r, message = message, cost = cost, task = crew.task_of(message), new = true}
  if bar(S, call) then return false end
  r[SCORE] = L.v + band(class)                         -- nobody waits; if it comes back, it is the first
  let_go(S, call)
  store(L, ref, r, leads)
  save(L)
  return true
end
-- If a budget of money is spent and the call does not wait for money: the refusal becomes its answer, in c
-- -> what the script returns at once instead, if the caller is to raise it
local function unfunded(L, ref, r, c)
  local held = not c.answer and not c.follows and due <= now and purse.fails(r) and purse.bar(purse.of(L, r))
  if held and r[MONEY][2] == purse.RAISES then
    count('over_budget')
    return {-6, ref, held.purse.name, math.floor(held.at / 1e6)}
  end
  if held then c.answer, c.leads = purse.refusal(held), nil end
end
-- Puts the call in its place, or where it waits for its time; the first one may be released at once -> 1 if it was
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
  return moved > 0 and not redis.call('ZSCORE', wait_key(lane, queue), ref) and moved or 0  -- else another was released
end
-- Counts a miss: the call might have had the answer of another, and has to ask itself.
local function missed()
  if not fp or claim[ASKED.AGAIN] == 1 or claim[ASKED.REFRESH] == 1 then return end
  reuse.note(reuse.one, reuse.series(lane, claim, tenant), REUSE.MISSES)
end
-- The call has its answer, or waits for that of another -> 1: whoever sends it is to have the answer renewed | 0
local function attend(ref, r, c)
  if c.answer then
    answered(ref, r, c.answer)
    return c.renews and 1 or 0
  end
  count('joined')
  reuse.note(reuse.one, reuse.series(lane, claim, tenant), REUSE.JOINED)
  follow(ref, r)
  return 0
end

function scripts.enqueue()
  take_arguments()
  local ref, instead = reference()
  if not ref then return instead end
  local L = load(lane)
  if not L.schema then
    if #ARGV < 24 then return {-2, ref} end
    if make(lane, 25, tonumber(ARGV[24])) == nil then return {-5, ref} end
    L = load(lane)
  end
  local shed = sheds ~= '0' and DEGRADED[L.mode] and due <= now
  local c, at_once, renews = {}, nil, nil
  if fp then c, at_once, renews = reuse.claimed(claim, L, shed, wished, queue, class, tenant) end
  if not c then return {claim[ASKED.AT_ONCE] == 1 and 3 or 4, ref, at_once, reuse.told(at_once, ARGV[22]), renews and 1 or 0} end
  if shed and not c.answer then
    c.answer = shedding(L)
    if sheds == '2' then return {-3, ref, L.mode} end
  end
  if not L.was then save(L) end
  local queues, r = redis.call('SMEMBERS', queues_key(lane)), new_record()
  local refused = unfunded(L, ref, r, c)
  if refused then return refused end
  local waits_here = not c.answer and not c.follows      -- for its own turn, or for its time
  if bound > 0 and waits_here and is_full(queues) then return {-1, ref} end
  if waits_here then missed() end
  if waits_here and pass(L, ref, r, queues, c.leads) then return {1, ref} end
  if waits_here and due <= now then place(L, r) end
  keep(ref, r, message)
  store(L, ref, r, c.leads, true)
  if waits_here then return {take_place(ref, r, queues), ref} end
  return {0, ref, attend(ref, r, c)}
end
