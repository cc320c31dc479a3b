-- A worker lives: its slots and queues count, what it holds is renewed. O(held · log out), more when it comes or goes.
-- ARGV  now µs · worker · slots (0: it does not consume) · its lifetime ms · number of queues · queue … · lease µs · tag …
-- returns  slots of all live workers
local wid, mine, life, nq = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local before = slots('')
local entry, held = {mine}, {}
for i = 1, nq do entry[i + 1] = ARGV[5 + i] end
local lease = tonumber(ARGV[6 + nq])
redis.call('HSETNX', PUMP, 'lease', int(lease))        -- until the first sweep says it
for i = 7 + nq, #ARGV do
  held[#held + 1] = ARGV[i]
  redis.call('ZADD', LEDGER, 'XX', int(now + lease), ARGV[i])
end
entry = cmsgpack.pack(entry)
local known = redis.call('HGET', key('slots'), wid)
if mine > 0 then
  redis.call('ZADD', key('workers'), int(now + life * 1000), wid)
  redis.call('HSET', key('slots'), wid, entry)
  redis.call('HSET', key('held'), wid, cmsgpack.pack(held))
  if redis.call('EXISTS', ASIDE) == 1 then
    for _, tag in ipairs(held) do take_back(tag) end
  end
else
  redis.call('ZREM', key('workers'), wid)
  redis.call('HDEL', key('slots'), wid)
  redis.call('HDEL', key('held'), wid)
  for _, tag in ipairs(held) do set_aside(tag) end
end
redis.call('HDEL', key('room'), 'total')
memo = {}
local total = slots('')
-- What lies ready where nobody is left goes to its lanes, and when the first is back all of it: released at their pace.
if (total == 0) ~= (before == 0) then recall(true) elseif mine == 0 and known then recall(false) end
if mine > 0 and known ~= entry then
  for _, q in ipairs(redis.call('SMEMBERS', HUNGRY)) do
    for _, lane in ipairs(redis.call('ZRANGE', row_key(q), 0, -1)) do release(lane, 1000) end
  end
end
return total
