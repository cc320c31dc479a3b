-- The claim of a fingerprint names its leader; the others follow it, outside the lane. Whoever the claim does not name can
-- neither settle it nor pass it on.
local function as_class(r, class) return r[SCORE] - band(r[CLASS]) + band(class) end  -- its place, were it of that class
local function lead(ref, r) redis.call('SET', claim_key(r[CLAIM]), ref, 'EX', math.max(1, ttl_of(r))) end
local function follow(ref, r)
  local k, ttl_s = followers_key(r[CLAIM]), ttl_of(r)
  redis.call('ZADD', k, int(now), ref)
  if redis.call('TTL', k) < ttl_s then redis.call('EXPIRE', k, ttl_s) end
  degradable(ref, r, 0)
end
-- Whom the claim names, when it is worth following: it is there, and waits for a worker that is.
local function leader_for(fp, queue)
  local ref = redis.call('GET', claim_key(fp))
  local r = ref and record(ref)
  if not r then return nil end
  if r[QUEUE] ~= queue and select(2, slots(r[QUEUE])) == 0 then return nil end
  return ref, r
end
-- The most urgent of those that are the same decides their place.
local function hurry(ref, r, class)
  if r[VERSION] > SCHEMA or r[SCORE] < 0 or band(class) >= band(r[CLASS]) then return end
  r[SCORE] = as_class(r, class)
  r[CLASS] = class
  keep(ref, r)
  local k = wait_key(r[LANE], r[QUEUE])
  local at = tonumber(redis.call('ZSCORE', k, ref) or '')
  if at then
    redis.call('ZADD', k, 'XX', int(r[SCORE] + (at >= BEHIND and BEHIND or 0)), ref)  -- a retry stays one
    note(r[LANE], now)
  end
end
-- A call has its answer without a request of its own: the pump gives it to a worker, without a permit, as it does with
-- those whose deadline has passed. Its links, its chord and its result are Celery's to see to.
local function answered(ref, r, answer)
  redis.call('SET', key('settled:') .. ref, answer, 'NX', 'EX', math.max(1, ttl_of(r)))
  redis.call('ZADD', ANSWERED, int(now), ref)
  redis.call('ZADD', EXPIRY, int(now), ref)
  plan(now)
end
-- The leader leaves without an answer: its first follower takes its place in the lane, and the others follow that one.
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
-- The followers of a claim go each its own way, at once: they arrive in their lane now, and share nothing any more.
local function disband(fp, lane)
  local L = load(lane)                                 -- theirs too: it is part of the fingerprint
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
-- A call has its outcome ('value'; 'short': one that is not whole; 'error'; 'passed': it asks again, or never will; 'alone':
-- nobody else can have it). Only a value is kept (again: as of cache); the followers of its claim get the outcome, or are let
-- go; of an error that is the leader's alone the first follower asks anew. O(followers · log).
local function share(ref, r, kind, answer, again)
  local packed = (kind == 'value' or kind == 'error') and redis.call('HGET', call_key(ref), 'c')
  local claim = packed and cmsgpack.unpack(packed)
  if claim and kind == 'error' and claim[ASKED.HEIRS] == 1 then return succeed(ref, r) end
  local keeps = claim and kind == 'value' and kept_ms(claim) > 0 and claim[ASKED.UNKEPT] ~= 1
  if keeps and not pcall(cache, claim, answer, again) then count('uncached') end
  if kind == 'passed' or redis.call('GET', claim_key(r[CLAIM])) ~= ref then return end
  if kind == 'alone' then
    disband(r[CLAIM], r[LANE])
  else
    for _, follower in ipairs(redis.call('ZRANGE', followers_key(r[CLAIM]), 0, -1)) do
      local f = record(follower)
      if f then answered(follower, f, answer) end
    end
  end
  redis.call('DEL', claim_key(r[CLAIM]), followers_key(r[CLAIM]))
end
local function shedding(L)                             -- what a call gets that is shed, as flow/call/answers.py reads it
  count('shed')
  return cjson.encode({error = {'LaneShedding', {L.name, L.mode}}})
end
-- Waiting calls of a lane that is in EMERGENCY or HALT get a kept answer, or else an error, where they said that they may;
-- they leave the lane without a permit. What waits for a time does so when the time has come. At most DEGRADED_AT_ONCE.
-- returns  whether there were any: there may be more, and heirs have come into the lane
function degrade(L)
  local k, any = degradable_key(L.name), false
  for _, ref in ipairs(redis.call('ZRANGE', k, 0, DEGRADED_AT_ONCE - 1)) do
    local r = record(ref)
    if not r or r[VERSION] <= SCHEMA then              -- else a newer worker's
      redis.call('ZREM', k, ref)                       -- it comes again when it waits again
      any = true
    end
    local waiting = r and r[VERSION] <= SCHEMA and (redis.call('ZSCORE', wait_key(r[LANE], r[QUEUE]), ref)
      or (r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref)))
    if waiting and redis.call('EXISTS', key('settled:') .. ref) == 0 then
      local packed = r[CLAIM] and r[DEGRADES] % 2 == STALE and redis.call('HGET', call_key(ref), 'c')
      local answer = packed and cached(cmsgpack.unpack(packed), L.mode, true)
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
