-- A worker lives: its slots and queues count, what it holds is renewed. O(held · log out).
-- ARGV  now µs · worker · slots (0: it does not consume) · its lifetime ms · number of queues · queue … · lease µs · tag …
-- returns  slots of all live workers
local wid, mine, life = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local before = slots('')
local entry = {mine}
local nq = tonumber(ARGV[5])
for i = 1, nq do entry[i + 1] = ARGV[5 + i] end
if mine > 0 then
  redis.call('ZADD', key('workers'), int(now + life * 1000), wid)
  redis.call('HSET', key('slots'), wid, cmsgpack.pack(entry))
else
  redis.call('ZREM', key('workers'), wid)
  redis.call('HDEL', key('slots'), wid)
end
redis.call('HDEL', key('room'), 'total')
local total = slots('')
local lease = tonumber(ARGV[6 + nq])
for i = 7 + nq, #ARGV do redis.call('ZADD', key('ledger'), 'XX', int(now + lease), ARGV[i]) end
if (total == 0) ~= (before == 0) then
  -- nobody is left to run what is ready, or the first is back: it goes to its lanes, to be released at their pace
  for _, tag in ipairs(redis.call('ZRANGE', key('ledger'), 0, -1)) do
    local ref = split(tag)
    local r = record(ref)
    if r and r[STARTED] == 0 then
      for _, raw in ipairs(redis.call('LRANGE', K .. r[QUEUE], 0, -1)) do
        if string.find(raw, '"delivery_tag": "' .. tag .. '"', 1, true) then restore(tag) break end
      end
    end
  end
  for _, lane in ipairs(redis.call('ZRANGE', key('lanes'), 0, -1)) do release(lane, 1) end
end
if total > before then feed_all() end
return total
