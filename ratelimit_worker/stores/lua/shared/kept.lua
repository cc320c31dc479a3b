-- Kept answers. What goes when there is no room is what saves least for what it takes: policy/worth.py has the rule, and the
-- model to which a test holds this. Scores in CACHE.USED; what an entry takes in CACHE.SIZES, with their sum (all) and the
-- floor. The floor begins ahead of the clock: an older version keeps the time of the last use there, and what it has used
-- goes first.
local worth = {AHEAD_US = 7 * DAY_US}
-- A claim, as Claim.packed writes it. STALE_MS and what comes after it: absent in claims of older versions.
local function kept_ms(claim) return claim[ASKED.TTL_MS] + (claim[ASKED.STALE_MS] or 0) end
local function uncache(fp)                             -- 1 when it was there
  redis.call('ZREM', CACHE.USED, fp)
  redis.call('ZREM', CACHE.ENDS, fp)
  local size = redis.call('HGET', CACHE.SIZES, fp)
  if size then
    redis.call('HDEL', CACHE.SIZES, fp)
    redis.call('HINCRBY', CACHE.SIZES, 'all', -tonumber(size))
  end
  return redis.call('DEL', cache_key(fp))
end
function worth.floor()
  local floor = tonumber(redis.call('HGET', CACHE.SIZES, 'floor') or '')
  if floor then return floor end
  redis.call('HSET', CACHE.SIZES, 'floor', int(now + worth.AHEAD_US))
  return now + worth.AHEAD_US
end
-- What one use adds to the score of an entry of this size; again: what asking again costs, billionths of a dollar.
function worth.of_one_use(again, size, claim)
  return KNOWN.WORTH_SCALE * again / math.max(size, claim[ASKED.BYTES] / math.max(1, claim[ASKED.ENTRIES]))
end
-- Evict until an entry of this size has room -> the floor. What has ended counts as nothing evicted. O(gone · log entries).
function worth.make_room(size, claim)
  local floor, gone, bytes = worth.floor(), 0, 0
  while true do
    local all = tonumber(redis.call('HGET', CACHE.SIZES, 'all') or '0')
    if redis.call('ZCARD', CACHE.USED) < claim[ASKED.ENTRIES] and all + size <= claim[ASKED.BYTES] then break end
    local least = redis.call('ZRANGE', CACHE.USED, 0, 0, 'WITHSCORES')
    if not least[1] then                               -- forgotten beside us: the sum is of nothing
      redis.call('DEL', CACHE.SIZES)
      redis.call('HSET', CACHE.SIZES, 'floor', real(floor))
      break
    end
    local its = tonumber(redis.call('HGET', CACHE.SIZES, least[1]) or '0')
    if uncache(least[1]) == 1 then
      floor, gone, bytes = math.max(floor, tonumber(least[2])), gone + 1, bytes + its
    end
  end
  if gone > 0 then
    redis.call('HSET', CACHE.SIZES, 'floor', real(floor))
    count('cache_evicted', gone)
    count('cache_evicted_bytes', bytes)
  end
  return floor
end
-- An answer is kept, past its time too where it may then be given in an emergency. again: {what asking again costs; the answer
-- packed, '': it is kept as it is}. O(gone · log entries).
local function cache(claim, answer, again)
  local fp, field, stored = claim[ASKED.FP], 'answer', answer
  if again[2] ~= '' then field, stored = 'packed', again[2] end
  local size = KNOWN.ENTRY_BYTES + #stored + #claim[ASKED.CONTEXT] + #claim[ASKED.TAGS] + #claim[ASKED.FUNC]
  local uses = tonumber(redis.call('HGET', cache_key(fp), 'uses') or '0') + 1  -- asked anew, it is used as it was
  if redis.call('HEXISTS', CACHE.SIZES, fp) == 1 then uncache(fp) end
  if size > claim[ASKED.BYTES] or claim[ASKED.ENTRIES] < 1 then return end
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', CACHE.ENDS, '-inf', int(now), 'LIMIT', 0, 100)) do uncache(old) end
  local floor, use = worth.make_room(size, claim), worth.of_one_use(tonumber(again[1]), size, claim)
  local ends = now + claim[ASKED.TTL_MS] * 1000
  redis.call('HSET', cache_key(fp), field, stored, 'context', claim[ASKED.CONTEXT], 'tags', claim[ASKED.TAGS],
    'func', claim[ASKED.FUNC], 'size', size, 'ends', int(ends), 'worth', real(use), 'uses', uses)
  redis.call('PEXPIRE', cache_key(fp), int(kept_ms(claim)))
  redis.call('ZADD', CACHE.USED, real(floor + uses * use), fp)
  redis.call('ZADD', CACHE.ENDS, int(now + kept_ms(claim) * 1000), fp)
  redis.call('HSET', CACHE.SIZES, fp, size)
  redis.call('HINCRBY', CACHE.SIZES, 'all', size)
end
-- The kept answer for a claim, which counts as a use; one past its time only while the lane is degraded.
-- whole: it must not be packed, for it is given to a call that waits
-- -> the answer; whether it is packed
local function cached(claim, mode, whole)
  if kept_ms(claim) <= 0 or claim[ASKED.REFRESH] == 1 then return nil end
  local fp = claim[ASKED.FP]
  local h = redis.call('HMGET', cache_key(fp), 'answer', 'ends', 'packed', 'worth', 'size')
  local answer, ends = h[1] or (not whole and h[3]), tonumber(h[2] or '')
  if not answer or not ends then return nil end
  local fresh = claim[ASKED.TTL_MS] > 0 and now < ends
  if not fresh and not (DEGRADED[mode] and now < ends + (claim[ASKED.STALE_MS] or 0) * 1000) then return nil end
  local uses = redis.call('HINCRBY', cache_key(fp), 'uses', 1)
  -- an older version has not said what it is worth
  local use = tonumber(h[4] or '') or worth.of_one_use(KNOWN.USUAL_NANOUSD, tonumber(h[5] or '0'), claim)
  redis.call('ZADD', CACHE.USED, 'XX', real(worth.floor() + uses * use), fp)
  count(fresh and 'cache_hits' or 'cache_stale')
  return answer, not h[1]
end
