-- The claim of a fingerprint names its leader. Calls with the same fingerprint follow the leader, and do not wait in the lane.
-- Only the call that the claim names can settle it or pass it on.
local function as_class(r, class) return r[SCORE] - band(r[CLASS]) + band(class) end  -- the place that it would have in that class
local function lead(ref, r) redis.call('SET', claim_key(r[CLAIM]), ref, 'EX', math.max(1, ttl_of(r))) end
local function follow(ref, r)
  local k, ttl_s = followers_key(r[CLAIM]), ttl_of(r)
  redis.call('ZADD', k, whole(now), ref)
  if redis.call('TTL', k) < ttl_s then redis.call('EXPIRE', k, ttl_s) end
  degradable(ref, r, 0)
  purse.strict(ref, r)
end
-- The leader of a claim, if it is worth following: it exists, and some worker serves its queue.
local function leader_for(fp, queue)
  local ref = redis.call('GET', claim_key(fp))
  local r = ref and record(ref)
  if not r then return nil end
  if r[QUEUE] ~= queue and select(2, slots(r[QUEUE])) == 0 then return nil end
  return ref, r
end
-- A leader gets the class of its most urgent follower.
local function hurry(ref, r, class)
  if r[VERSION] > SCHEMA or r[SCORE] < 0 or band(class) >= band(r[CLASS]) then return end
  r[SCORE] = as_class(r, class)
  r[CLASS] = class
  keep(ref, r)
  local k = wait_key(r[LANE], r[QUEUE])
  local at = tonumber(redis.call('ZSCORE', k, ref) or '')
  if at then
    redis.call('ZADD', k, 'XX', whole(r[SCORE] + (at >= BEHIND and BEHIND or 0)), ref)  -- a retry stays behind the others
    note(r[LANE], now)
  end
end
reuse.MOST_FOLLOWERS = 1000                            -- of one claim, since all get their answer in one step
-- What becomes of a call that arrives with a claim -> {answer; leads; follows}; or nil, and a kept answer for a caller who takes
-- it directly, or has to unpack it and repeat, and whether the caller is to have it renewed
function reuse.claimed(claim, L, shed, ref, queue, class, tenant)
  local c, fp = {}, claim[ASKED.FP]
  if claim[ASKED.AGAIN] == 1 then                      -- the same call goes on: no look-up, and it keeps its claim
    local leader = claim[ASKED.JOIN] == 1 and redis.call('GET', claim_key(fp))
    c.leads = leader and not shed and (leader == ref or string.sub(leader, 1, #ref + 1) == ref .. '~')
    return c
  end
  if (claim[ASKED.ANSWER] or '') ~= '' then            -- the caller has unpacked it
    c.answer = claim[ASKED.ANSWER]
    return c
  end
  local packed
  c.answer, packed, c.renews = cached(claim, L.name, L.mode, tenant)
  if c.answer and (packed or claim[ASKED.AT_ONCE] == 1) then return nil, c.answer, c.renews end
  if not c.answer and not shed and claim[ASKED.JOIN] == 1 then
    local leader, r = leader_for(fp, queue)
    c.leads = not leader
    -- beyond that many followers, a call is sent by itself
    c.follows = leader and redis.call('ZCARD', followers_key(fp)) < reuse.MOST_FOLLOWERS
    if c.follows then hurry(leader, r, class) end
  end
  return c
end
-- A kept answer that the caller takes directly is also stored as the call's result -> 1 if it was stored; 0: the caller has to
-- store it (it is not a plain value, or this user may not write results). form: how results are stored, as enqueue.lua gets it
function reuse.told(answer, form)
  form = form ~= '' and cmsgpack.unpack(form)
  local head, at = '{"value": ', string.match(answer, '^{"by": "[%x-]+", ()')
  if at then answer = '{' .. string.sub(answer, at) end  -- without the trace context of the call that asked
  if not form or string.sub(answer, 1, #head) ~= head or string.sub(answer, -1) ~= '}' then return 0 end
  local text = form[2] .. string.sub(answer, #head + 1, -2) .. form[3]
  local stored = redis.pcall('SET', form[1], text, unpack(form[4] > 0 and {'EX', form[4]} or {}))
  if stored.err or type(redis.pcall('PUBLISH', form[1], text)) == 'table' then return 0 end
  return 1
end
-- A call has its answer without a request of its own. The pump hands it to a worker, without a permit (as it does when a deadline
-- has passed), so that Celery stores its result and goes on with its links and its chord.
local function answered(ref, r, answer)
  redis.call('SET', key('settled:') .. ref, answer, 'NX', 'EX', math.max(1, ttl_of(r)))
  redis.call('ZADD', ANSWERED, whole(now), ref)
  redis.call('ZADD', EXPIRY, whole(now), ref)
  plan(now)
end
-- The leader goes without an answer: its first follower takes its place in the lane, and the others follow that one.
local function succeed(ref, r)
  local fp = r[CLAIM]
  if redis.call('GET', claim_key(fp)) ~= ref then return end
  redis.call('DEL', claim_key(fp))
  while true do
    local heir = redis.call('ZPOPMIN', followers_key(fp))[1]
    if not heir then return end
    local h = record(heir)
    if h then
      lead(heir, h)
      if r[SCORE] >= 0 then h[SCORE] = as_class(r, h[CLASS]) else place(load(h[LANE]), h) end
      h[SINCE] = now
      keep(heir, h)
      wait(heir, h)
      note(h[LANE], now)
      return
    end
  end
end
-- All followers of a claim are put into their lane now, and share nothing any more.
local function disband(fp, lane)
  local L = load(lane)                                 -- their lane too, since it is part of the fingerprint
  for _, follower in ipairs(redis.call('ZRANGE', followers_key(fp), 0, -1)) do
    local f = record(follower)
    if f then
      f[CLAIM], f[SINCE] = false, now
      place(L, f)
      keep(follower, f)
      wait(follower, f)
    end
  end
  note(lane, now)
end
-- A call has its outcome; what becomes of its followers? kind: 'value' an answer, which is also kept (again: see cache) · 'short'
-- an incomplete answer · 'error' · for these three, the followers get the same, except that after an error the first follower
-- asks anew if the claim says so · 'passed' the call has no outcome for others: nothing is done · 'alone' the answer can be used
-- by the call only: the followers go into their lane. O(followers · log).
local function share(ref, r, kind, answer, again)
  local packed = (kind == 'value' or kind == 'error') and redis.call('HGET', call_key(ref), 'c')
  local claim = packed and cmsgpack.unpack(packed)
  if claim and kind == 'error' and claim[ASKED.HEIRS] == 1 then return succeed(ref, r) end
  local keeps = claim and kind == 'value' and kept_ms(claim) > 0 and claim[ASKED.UNKEPT] ~= 1
  if keeps and not pcall(cache, r, claim, answer, again) then count('uncached') end
  if kind == 'passed' or redis.call('GET', claim_key(r[CLAIM])) ~= ref then return end
  if kind == 'alone' then
    disband(r[CLAIM], r[LANE])
  else
    local calls = {}                                   -- by tenant
    for _, follower in ipairs(redis.call('ZRANGE', followers_key(r[CLAIM]), 0, -1)) do
      local f = record(follower)
      if f then
        answered(follower, f, answer)
        calls[f[TENANT]] = (calls[f[TENANT]] or 0) + 1
      end
    end
    for tenant, n in pairs(claim and kind == 'value' and calls or {}) do
      local by = worth.spared(n, #answer, again[4], again[5], REUSE.JOINED_NANOUSD, again[3])
      reuse.note(reuse.several, reuse.series(r[LANE], claim, tenant), by)
    end
  end
  redis.call('DEL', claim_key(r[CLAIM]), followers_key(r[CLAIM]))
end
local function shedding(L)                             -- the outcome of a call that is shed; flow/call/answers.py reads it
  count('shed')
  return cjson.encode({error = {'LaneShedding', {L.name, L.mode}}})
end
-- In EMERGENCY or HALT, waiting calls that allow it get a kept answer past its time, or else an error, and leave the lane without
-- a permit. A call that waits for a time does so when that has come. At most DEGRADED.AT_ONCE calls in one step.
-- -> whether there were any: then there may be more, and followers may have come into the lane in the place of their leaders
function degrade(L)
  local k, any = degradable_key(L.name), false
  for _, ref in ipairs(redis.call('ZRANGE', k, 0, DEGRADED.AT_ONCE - 1)) do
    local r = record(ref)
    if not r or r[VERSION] <= SCHEMA then              -- a newer version's is left alone
      redis.call('ZREM', k, ref)                       -- it is entered again when it waits again
      any = true
    end
    local waiting = r and r[VERSION] <= SCHEMA and (redis.call('ZSCORE', wait_key(r[LANE], r[QUEUE]), ref)
      or (r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref)))
    if waiting and redis.call('EXISTS', key('settled:') .. ref) == 0 then
      local packed = r[CLAIM] and r[DEGRADES] % 2 == STALE and redis.call('HGET', call_key(ref), 'c')
      local answer = packed and cached(cmsgpack.unpack(packed), L.name, L.mode, r[TENANT], true)
      if not answer and r[DEGRADES] >= SHED then answer = shedding(L) end
      if answer then
        unwait(ref, r)
        if r[CLAIM] then succeed(ref, r) end
        answered(ref, r, answer)
      end
    end
  end
  return any
end
-- A call that is to fail rather than wait for money gets its refusal -> whether it did. It has left `wait`, or leaves it here.
function purse.refuse(ref, r, held)
  if not purse.fails(r) or redis.call('EXISTS', key('settled:') .. ref) == 1 then return false end
  unwait(ref, r)
  redis.call('ZREM', purse.strict_key(r[LANE]), ref)
  if r[CLAIM] then succeed(ref, r) end
  answered(ref, r, purse.refusal(held))
  return true
end
-- The same for all such calls in a lane with a budget that is spent, at most AT_ONCE -> whether there may be more
function purse.refuse_all(L, held)
  local refs = redis.call('ZRANGE', purse.strict_key(L.name), 0, purse.AT_ONCE - 1)
  for _, ref in ipairs(refs) do
    local r = record(ref)
    redis.call('ZREM', purse.strict_key(L.name), ref)  -- it is entered again when it waits again
    if r and r[VERSION] <= SCHEMA and (redis.call('ZSCORE', wait_key(r[LANE], r[QUEUE]), ref)
      or (r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref))) then purse.refuse(ref, r, held) end
  end
  return #refs == purse.AT_ONCE
end
