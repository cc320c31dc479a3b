-- What reuse has saved, by minute and series (lane, function, context and tenant of the calls). Each minute is a hash, which the
-- recorder adds to the roll-ups when it is over (stores/reuse.py); contracts/reuse.py has the names of the sums.
local reuse = {MINUTES = key('reuse:minutes'), MINUTE_US = 60e6, OTHERS = '(others)'}
function reuse.key(minute) return key('reuse:') .. int(minute) end
-- The series of a call, packed.
function reuse.series(lane, claim, tenant)
  return cmsgpack.pack({lane, claim[ASKED.FUNC], claim[ASKED.CONTEXT], tenant})
end
-- A minute has got a new series -> whether it has too many. The first series gives the minute its name, by which the database
-- adds it only once, and its TTL.
function reuse.is_full(k, minute, series)
  if redis.call('HSETNX', k, 'name', redis.sha1hex(k .. int(now) .. series)) == 1 then
    redis.call('EXPIRE', k, KNOWN.REUSE_KEPT_S)
    redis.call('ZADD', reuse.MINUTES, whole(minute), whole(minute))
    redis.call('ZREMRANGEBYSCORE', reuse.MINUTES, '-inf', whole(minute - KNOWN.REUSE_KEPT_S / 60))
    redis.call('EXPIRE', reuse.MINUTES, KNOWN.REUSE_KEPT_S)
  end
  return redis.call('HLEN', k) > KNOWN.REUSE_MOST
end
function reuse.others(series)
  return cmsgpack.pack({cmsgpack.unpack(series)[1], reuse.OTHERS, reuse.OTHERS, reuse.OTHERS})
end
-- Adds one to a sum. If there are too many series, it counts for OTHERS.
function reuse.one(series, name)
  local minute = math.floor(now / reuse.MINUTE_US)
  local k, field = reuse.key(minute), name .. ':' .. series
  if redis.call('HINCRBY', k, field, 1) == 1 and reuse.is_full(k, minute, series) then
    redis.call('HDEL', k, field)
    redis.call('HINCRBY', k, name .. ':' .. reuse.others(series), 1)
  end
end
-- Adds to several sums at once, in one field: what one use of an answer saves.
function reuse.several(series, by)
  local minute = math.floor(now / reuse.MINUTE_US)
  local k, field = reuse.key(minute), 'sums:' .. series
  local before = redis.call('HGET', k, field)
  if not before and reuse.is_full(k, minute, series) then
    field = 'sums:' .. reuse.others(series)
    before = redis.call('HGET', k, field)
  end
  local sums = before and cmsgpack.unpack(before) or {}
  for name, n in pairs(by) do
    if n ~= 0 then sums[name] = (sums[name] or 0) + n end
  end
  redis.call('HSET', k, field, cmsgpack.pack(sums))
end
-- Calls one of the two, for callers that must not fail by it: an error is only counted.
function reuse.note(add, ...)
  if not pcall(add, ...) then count('unsummed') end
end
