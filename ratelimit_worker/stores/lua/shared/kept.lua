-- Kept answers. If the cache is full, the entries that save least for their size are evicted: policy/worth.py has the rule, and
-- a model with which a test compares this. CACHE.USED holds the scores, CACHE.SIZES the bytes of each entry, their sum (all)
-- and the floor. The floor begins ahead of the clock: an older version writes the time of the last use as the score, so that
-- its entries rank lowest and go first.
local worth = {AHEAD_US = 7 * DAY_US}
-- claim: the array that Claim.packed writes. Claims of older versions end before STALE_MS.
local function kept_ms(claim)
  return claim[ASKED.TTL_MS] + math.max(claim[ASKED.STALE_MS] or 0, claim[ASKED.REVALIDATE_MS] or 0)
end
local function uncache(fp)                             -- -> 1 if it was there
  redis.call('ZREM', CACHE.USED, fp)
  redis.call('ZREM', CACHE.ENDS, fp)
  local size = redis.call('HGET', CACHE.SIZES, fp)
  if size then
    redis.call('HDEL', CACHE.SIZES, fp)
    redis.call('HINCRBY', CACHE.SIZES, 'all', -tonumber(size))
  end
  return redis.call('DEL', cache_key(fp))
end
-- Counts an evicted answer for the calls that it was kept for. An entry of an older version does not say which.
function worth.gone(fp, size)
  local h = redis.call('HMGET', cache_key(fp), 'of', 'func', 'context')
  if not h[1] then return end
  local of = cmsgpack.unpack(h[1])
  reuse.several(cmsgpack.pack({of[1], h[2], h[3], of[2]}), {[REUSE.EVICTED] = 1, [REUSE.EVICTED_BYTES] = size})
end
-- What some calls have saved by getting an answer that another had paid for: sums for `reuse.several`.
function worth.spared(calls, bytes, input, output, nanousd, paid)
  return {[REUSE.BYTES] = calls * bytes, [REUSE.INPUT_TOKENS] = calls * (tonumber(input) or 0),
    [REUSE.OUTPUT_TOKENS] = calls * (tonumber(output) or 0), [nanousd] = calls * (tonumber(paid) or 0)}
end
function worth.floor()
  local floor = tonumber(redis.call('HGET', CACHE.SIZES, 'floor') or '')
  if floor then return floor end
  redis.call('HSET', CACHE.SIZES, 'floor', whole(now + worth.AHEAD_US))
  return now + worth.AHEAD_US
end
-- What one use adds to the score of an entry of this size. again: what asking again would cost, billionths of a dollar
function worth.of_one_use(again, size, claim)
  return KNOWN.WORTH_SCALE * again / math.max(size, claim[ASKED.BYTES] / math.max(1, claim[ASKED.ENTRIES]))
end
-- Evicts until an entry of this size fits in -> the floor. Entries that had expired do not count as evicted. O(gone · log
-- entries).
function worth.make_room(size, claim)
  local floor, gone, bytes = worth.floor(), 0, 0
  while true do
    local all = tonumber(redis.call('HGET', CACHE.SIZES, 'all') or '0')
    if redis.call('ZCARD', CACHE.USED) < claim[ASKED.ENTRIES] and all + size <= claim[ASKED.BYTES] then break end
    local least = redis.call('ZRANGE', CACHE.USED, 0, 0, 'WITHSCORES')
    if not least[1] then                               -- no entry is left, so the sum is wrong: begin anew
      redis.call('DEL', CACHE.SIZES)
      redis.call('HSET', CACHE.SIZES, 'floor', floor)
      break
    end
    local its = tonumber(redis.call('HGET', CACHE.SIZES, least[1]) or '0')
    reuse.note(worth.gone, least[1], its)
    if uncache(least[1]) == 1 then
      floor, gone, bytes = math.max(floor, tonumber(least[2])), gone + 1, bytes + its
    end
  end
  if gone > 0 then
    redis.call('HSET', CACHE.SIZES, 'floor', floor)
    count('cache_evicted', gone)
    count('cache_evicted_bytes', bytes)
  end
  return floor
end
-- Counts one use of an answer.
function worth.used(series, bytes, paid, of, fresh)
  local _, _, input, output = unpack(of and cmsgpack.unpack(of) or {})
  local by = worth.spared(1, bytes, input, output, fresh and REUSE.HITS_NANOUSD or REUSE.STALE_NANOUSD, paid)
  by[fresh and REUSE.HITS or REUSE.STALE] = 1
  reuse.several(series, by)
end
-- Keeps an answer for its time, and beyond that if it may be given then. r: the record of its call; again: {what asking again
-- costs; the answer compressed, '': it is kept as it is; what it cost, its tokens of input, its tokens of output: each use saves
-- these}. O(gone · log entries).
local function cache(r, claim, answer, again)
  local fp, field, stored = claim[ASKED.FP], 'answer', answer
  if again[2] ~= '' then field, stored = 'packed', again[2] end
  local size = KNOWN.ENTRY_BYTES + #stored + #claim[ASKED.CONTEXT] + #claim[ASKED.TAGS] + #claim[ASKED.FUNC]
  local uses = tonumber(redis.call('HGET', cache_key(fp), 'uses') or '0') + 1  -- an entry that is replaced keeps its uses
  if redis.call('HEXISTS', CACHE.SIZES, fp) == 1 then uncache(fp) end
  if size > claim[ASKED.BYTES] or claim[ASKED.ENTRIES] < 1 then return end
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', CACHE.ENDS, '-inf', whole(now), 'LIMIT', 0, 100)) do uncache(old) end
  local floor, use = worth.make_room(size, claim), worth.of_one_use(tonumber(again[1]), size, claim)
  local ends = now + claim[ASKED.TTL_MS] * 1000
  redis.call('HSET', cache_key(fp), field, stored, 'context', claim[ASKED.CONTEXT], 'tags', claim[ASKED.TAGS],
    'func', claim[ASKED.FUNC], 'size', size, 'ends', whole(ends), 'worth', use, 'uses', uses,
    'paid', again[3], 'of', cmsgpack.pack({r[LANE], r[TENANT], tonumber(again[4]), tonumber(again[5])}))
  redis.call('PEXPIRE', cache_key(fp), whole(kept_ms(claim)))
  redis.call('ZADD', CACHE.USED, floor + uses * use, fp)
  redis.call('ZADD', CACHE.ENDS, whole(now + kept_ms(claim) * 1000), fp)
  redis.call('HSET', CACHE.SIZES, fp, size)
  redis.call('HINCRBY', CACHE.SIZES, 'all', size)
end
-- -> whether the caller that gets an answer past its time is to have it renewed: not if a call that renews it is on its way, or
-- if another caller was told to send one a short time ago (it may not have come yet, or has failed).
function worth.renews(fp, series)
  local leader = redis.call('GET', claim_key(fp))
  if leader and redis.call('EXISTS', call_key(leader)) == 1 then return false end
  local asked = tonumber(redis.call('HGET', cache_key(fp), 'asked') or '')
  if asked and now < asked + KNOWN.RENEW_AGAIN_US then return false end
  redis.call('HSET', cache_key(fp), 'asked', whole(now))
  reuse.note(reuse.one, series, REUSE.REFRESHED)
  return true
end
-- The kept answer for a claim of this tenant, which counts as a use; one past its time only while the lane is in EMERGENCY or
-- HALT, or if the claim lets one call renew it meanwhile.
-- whole: only an uncompressed answer will do, since a script gives it to a waiting call
-- -> the answer; whether it is compressed; whether the caller is to have it renewed
local function cached(claim, lane, mode, tenant, whole)
  if kept_ms(claim) <= 0 or claim[ASKED.REFRESH] == 1 then return nil end
  local fp = claim[ASKED.FP]
  local h = redis.call('HMGET', cache_key(fp), 'answer', 'ends', 'packed', 'worth', 'size', 'paid', 'of')
  local answer, ends = h[1] or (not whole and h[3]), tonumber(h[2] or '')
  if not answer or not ends then return nil end
  local fresh = claim[ASKED.TTL_MS] > 0 and now < ends
  local renewed = now < ends + (claim[ASKED.REVALIDATE_MS] or 0) * 1000
  local degraded = DEGRADED[mode] and now < ends + (claim[ASKED.STALE_MS] or 0) * 1000
  if not fresh and not renewed and not degraded then return nil end
  local uses = redis.call('HINCRBY', cache_key(fp), 'uses', 1)
  -- an entry of an older version has no worth
  local use = tonumber(h[4] or '') or worth.of_one_use(KNOWN.USUAL_NANOUSD, tonumber(h[5] or '0'), claim)
  redis.call('ZADD', CACHE.USED, 'XX', worth.floor() + uses * use, fp)
  count(fresh and 'cache_hits' or 'cache_stale')
  local series = reuse.series(lane, claim, tenant)
  reuse.note(worth.used, series, #answer, h[6], h[7], fresh)
  return answer, not h[1], not fresh and renewed and not DEGRADED[mode] and worth.renews(fp, series)
end
