-- How many calls wait on a queue, over all lanes, and lie ready; with purge they leave for good. O(lanes), purge O(n).
-- ARGV  now µs · queue · purge (0|1)
-- returns  how many
local queue, purge, n = ARGV[2], ARGV[3] == '1', 0
for _, lane in ipairs(redis.call('ZRANGE', key('lanes'), 0, -1)) do
  local k = wait_key(lane, queue)
  n = n + redis.call('ZCARD', k)
  if purge then
    for _, ref in ipairs(redis.call('ZRANGE', k, 0, -1)) do forget(ref) end
    redis.call('DEL', k)
    for _, ref in ipairs(redis.call('ZRANGE', key('due:') .. lane, 0, -1)) do
      local r = record(ref)
      if r and r[QUEUE] == queue then
        redis.call('ZREM', key('due:') .. lane, ref)
        forget(ref)
        n = n + 1
      end
    end
  else
    for _, ref in ipairs(redis.call('ZRANGE', key('due:') .. lane, 0, 999)) do
      local r = record(ref)
      if r and r[QUEUE] == queue then n = n + 1 end
    end
  end
end
if purge then
  for _, tag in ipairs(redis.call('SMEMBERS', key('onqueue:') .. queue)) do
    local ref = split(tag)
    local r = record(ref)
    if r and r[STARTED] == 0 then
      for _, raw in ipairs(redis.call('LRANGE', K .. queue, 0, -1)) do
        if string.find(raw, '"delivery_tag": "' .. tag .. '"', 1, true) then
          redis.call('LREM', K .. queue, 1, raw)
          leave(tag, r)
          forget(ref)
          n = n + 1
          break
        end
      end
    end
  end
end
return n
