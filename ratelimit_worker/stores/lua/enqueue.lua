-- Put a call into its lane; release it at once when nothing waits and pace, gate and room allow. O(log waiting).
-- ARGV  now µs · lane · queue · ref wished · publication · class · tenant · weight · cost of 4 dimensions ·
--       due in µs (0: now) · deadline in µs · most waiting (0: no bound) · tries so far · attempts so far · message · body ·
--       fields and values of the lane's hash when the lane is new …
-- returns  {1 released | 0 waits | 2 was there already | -1 lane full, ref}
local lane, queue, ref, pub, class, tenant = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local cost = {tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])}
local due, deadline, bound = now + tonumber(ARGV[13]), now + tonumber(ARGV[14]), tonumber(ARGV[15])
-- a task id may be sent again while it still runs (retry, replace): a message has a reference of its own
local wished = ref
for i = 1, 99 do
  local r = record(ref)
  if not r then break end
  if r[PUB] == pub then return {2, ref} end            -- the same publication, sent again after a lost reply
  ref = wished .. '~' .. i
end
if redis.call('EXISTS', lane_key(lane)) == 0 then
  for i = 20, #ARGV - 1, 2 do redis.call('HSET', lane_key(lane), ARGV[i], ARGV[i + 1]) end
end
local L = load(lane)
if not L.was then save(L) end
local waiting = 0
for _, q in ipairs(redis.call('SMEMBERS', key('queues:') .. lane)) do
  waiting = waiting + redis.call('ZCARD', wait_key(lane, q))
end
if bound > 0 and waiting + redis.call('ZCARD', key('due:') .. lane) >= bound then
  count('refused_full')
  return {-1, ref}
end
local r = {SCHEMA, lane, queue, place(L, class, tenant, tonumber(ARGV[8]), cost), class, tenant, cost, now, deadline,
  0, tonumber(ARGV[16]), 0, 0, 0, {0, 0, 0, 0, 0, 0}, pub, 0, tonumber(ARGV[17])}
local ttl_s = math.ceil((deadline - now + DAY_US) / 1e6)
redis.call('HSET', call_key(ref), 'i', cmsgpack.pack(r), 'm', ARGV[18])
redis.call('EXPIRE', call_key(ref), ttl_s)
redis.call('SET', key('payload:') .. ref, ARGV[19], 'EX', ttl_s)
redis.call('ZADD', key('expiry'), int(deadline), ref)
if due > now then
  redis.call('ZADD', key('due:') .. lane, int(due), ref)
  local at = redis.call('ZSCORE', key('next'), lane)
  if not at or tonumber(at) > due then note(lane, due) end
  return {0, ref}
end
wait(ref, r)
local moved = 0
if waiting == 0 then moved = release(lane, 1) else overdue() end
return {moved, ref}
