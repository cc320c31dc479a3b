-- Keep the message and the arguments of a call that is about to fail for good, so that a person can run it again; or forget
-- them. The oldest go when there are too many. O(log kept), and as much for each that goes.
-- ARGV  now µs · tag ('': forget the call) · id of the call · attempts made at it · most calls · most bytes of all ·
--       how long it is kept, s
-- returns  1 kept | 0 forgotten; or not kept: it is not out under this tag, has an answer, or is too large
local id, attempts, most, most_bytes, ttl_s = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local SHELF, SIZES, ALL = key('shelf'), key('shelf:sizes'), ''
local function drop(one)
  local size = redis.call('HGET', SIZES, one)
  if size then redis.call('HINCRBY', SIZES, ALL, -size) end
  redis.call('HDEL', SIZES, one)
  redis.call('ZREM', SHELF, one)
  redis.call('DEL', key('shelved:') .. one)
end
local function make_room()
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', SHELF, '-inf', whole(now - ttl_s * 1e6))) do drop(one) end
  while redis.call('ZCARD', SHELF) > most or tonumber(redis.call('HGET', SIZES, ALL) or '0') > most_bytes do
    local oldest = redis.call('ZRANGE', SHELF, 0, 0)[1]
    if not oldest then return redis.call('DEL', SIZES) end
    drop(oldest)
  end
end
-- -> its record, message and arguments; nil: there is nothing to keep
local function what_is_out(tag)
  local ref, n = split(tag)
  local r, message = record_and_message(ref)
  if not r or r[VERSION] > SCHEMA or n ~= r[RELEASE] or not redis.call('ZSCORE', LEDGER, tag) then return nil end
  if redis.call('EXISTS', key('settled:') .. ref) == 1 then return nil end
  return r, message, redis.call('GET', key('payload:') .. ref)
end

drop(id)
local r, message, payload
if ARGV[2] ~= '' then r, message, payload = what_is_out(ARGV[2]) end
if not message or not payload or #message + #payload > most_bytes then return 0 end
redis.call('HSET', key('shelved:') .. id, 'm', message, 'p', payload, 'n', attempts, 'q', r[QUEUE],
  'd', whole(r[DEADLINE] - r[ACCEPTED]))
redis.call('EXPIRE', key('shelved:') .. id, ttl_s)
redis.call('ZADD', SHELF, whole(now), id)
redis.call('HSET', SIZES, id, #message + #payload)
redis.call('HINCRBY', SIZES, ALL, #message + #payload)
redis.call('EXPIRE', SHELF, ttl_s)
redis.call('EXPIRE', SIZES, ttl_s)
make_room()
return redis.call('EXISTS', key('shelved:') .. id)
