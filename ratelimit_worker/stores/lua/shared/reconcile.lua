-- Corrects what a call has reserved when its real usage is known: the difference goes back, or is charged.

-- Some providers charge what was reserved, and not what was used. Such a provider shows it by refusing for tokens soon after
-- the lane has given some back: then nothing is given back for a minute; twice as long each time, up to an hour; after an hour
-- without such a refusal, a minute again. The lane also lowers its level by 2 s of its rate or two calls, since the provider's
-- bucket is empty: else every estimate that is too low meets a 429 (0.7 % instead of 0.2 % in the trace of
-- benchmarks/tokens.py).
local function doubt(lane, verdict, cost)
  local DOUBT_US, MOST_DOUBT_US, SLACK_S = 60e6, 3600e6, 2
  if (tonumber(string.match(verdict, '^refused%.(%d)$')) or 1) <= 1 then return end
  local h = redis.call('HMGET', lane_key(lane), FIELD.GAVE_BACK_AT, FIELD.DOUBT_UNTIL, FIELD.DOUBT_LASTS)
  local gave, till, long = tonumber(h[1] or '0'), tonumber(h[2] or '0'), tonumber(h[3] or '0')
  if now - gave > DOUBT_US or now < till then return end  -- nothing was given back lately, or this is known already
  long = now - till > MOST_DOUBT_US and DOUBT_US or math.min(MOST_DOUBT_US, math.max(DOUBT_US, 2 * long))
  redis.call('HSET', lane_key(lane), FIELD.GAVE_BACK_AT, 0, FIELD.DOUBT_UNTIL, whole(now + long), FIELD.DOUBT_LASTS, whole(long))
  local L = bucket(lane)
  for i = 2, N do
    if L.p[i] then L.l[i] = L.l[i] - math.max(SLACK_S * L.p[i], 2 * cost[i]) end
  end
  save(L)
end
-- backs: units to give back, by dimension (below 0: to charge); at: when they were spent, µs -> whether a level rose
local function give_back(L, backs, at)
  local got = false
  if L.quota then use_quota(L, backs, -1, at) end
  for i = 2, N do
    local back = backs[i]
    if L.p[i] and back ~= 0 then
      L.l[i] = back < 0 and L.l[i] + back or math.max(L.l[i], math.min(L.l[i], L.d[i]) + back)
      got = got or back > 0
    end
    L.c[i] = L.c[i] - back
  end
  return got
end
-- If the provider has reported what a call used, and no headers say what is left, the lane gets back what was reserved
-- beyond that, or pays what was missing; its parents and the day's quota likewise. The call's cost is the real one from then
-- on, so doing it again changes nothing. A bucket is often shallower than one call: what is given back beyond its depth is kept
-- beside the level (FIELD.BEYOND), at most one call's at a time.
-- used: the array that Lesson.used packs
-- -> whether the lane waits for its pace and has got something back
local function reconcile(ref, r, used)
  if used[1] ~= 1 and now < tonumber(redis.call('HGET', lane_key(r[LANE]), FIELD.DOUBT_UNTIL) or '0') then return false end
  local L, cost, backs, changed, got = load(r[LANE], r[PARENTS] or {}), {r[COST][1]}, {0}, false, nil
  for i = 2, N do
    backs[i] = used[i] >= 0 and r[COST][i] - used[i] or 0
    cost[i] = r[COST][i] - backs[i]
    changed = changed or backs[i] ~= 0
  end
  if not changed then return false end
  got = give_back(L, backs, r[TICKET][2])
  for i = 1, L.parents and #L.parents or 0 do
    if give_back(L.parents[i], backs, r[TICKET][2]) then wake(L.parents[i].name) end
  end
  r[COST] = cost
  keep(ref, r)
  save(L)
  if got then redis.call('HSET', lane_key(r[LANE]), FIELD.GAVE_BACK_AT, whole(now)) end
  local at = got and redis.call('ZSCORE', NEXT, r[LANE])
  return at and tonumber(at) > now
end
