-- A worker lives: its slots, queues and crew count, what it holds is renewed. O(held · log out), more when it comes or goes.
-- What it lends is set aside: it runs as many more beside its slots, so those are free for other lanes.
-- ARGV  now µs · worker · slots (0: it does not consume) · its lifetime ms · number of queues · queue … · lease µs · crew ·
--       how long the tasks of its crew are kept, s · number of tags that it lends · tag … (those first)
-- returns  {slots of all live workers, 1: the tasks of its crew are known | 0: tell them, then beat again}
local wid, mine, life, nq = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local name, keep_s, n_lent = ARGV[7 + nq], ARGV[8 + nq], tonumber(ARGV[9 + nq])
if name ~= crew.ALL and redis.call('EXPIRE', key('tasks:') .. name, keep_s) == 0 and mine > 0 then return {0, 0} end
local total, _, _, _, old = slots('')
local before = total + old
local entry, plain, held = {name, mine}, {mine}, {}
for i = 1, nq do entry[i + 2], plain[i + 1] = ARGV[5 + i], ARGV[5 + i] end
local lease = tonumber(ARGV[6 + nq])
redis.call('HSETNX', PUMP, 'lease', int(lease))        -- until the first sweep says it
for i = 10 + nq, #ARGV do
  held[#held + 1] = ARGV[i]
  redis.call('ZADD', LEDGER, 'XX', int(now + lease), ARGV[i])
  -- What Redis has forgotten runs on here: nobody may run it beside, and who waits for it hears its answer.
  local done = key('done:') .. split(ARGV[i])
  if redis.call('EXISTS', call_key((split(ARGV[i])))) == 0 and (redis.call('GET', done) or memory.HELD) == memory.HELD then
    redis.call('SET', done, memory.HELD, 'PX', int(math.max(5000, lease / 1000)))
  end
end
-- What an older version released may run here: it takes a slot of ours from now on.
if redis.call('EXISTS', key('onqueues')) == 1 and mine > 0 then
  for _, tag in ipairs(held) do
    local ref = split(tag)
    local r = record(ref)
    if r and r[VERSION] <= SCHEMA and not r[CREW] and redis.call('SREM', crew.older_key(r[QUEUE]), tag) == 1 then
      r[CLAIM], r[DEGRADES], r[PARENTS] = r[CLAIM] or false, r[DEGRADES] or false, r[PARENTS] or false
      r[CREW] = name
      keep(ref, r)
      redis.call('SADD', crew.taken_key(r), tag)
      redis.call('SADD', key('oncrews'), crew.at(name, r[QUEUE]))
    end
  end
end
entry = cmsgpack.pack(entry)
local known = redis.call('HGET', key('crew'), wid)
local changed = known ~= entry
if mine > 0 then
  redis.call('ZADD', key('workers'), int(now + life * 1000), wid)
  redis.call('HSET', key('crew'), wid, entry)
  redis.call('HSET', key('held'), wid, cmsgpack.pack(held))
  -- Where workers of a version without crews live, its scripts count our slots too: we read its lists as well. Where none
  -- does they find no slot, so that its producers leave what they enter to our pump, and nothing to stock workers.
  if old > 0 then redis.call('HSET', key('slots'), wid, cmsgpack.pack(plain)) else redis.call('HDEL', key('slots'), wid) end
  if redis.call('EXISTS', ASIDE) == 1 then
    for i = n_lent + 1, #held do take_back(held[i]) end
  end
  local lent, lends = {}, false
  for i = 1, n_lent do
    local ref = split(held[i])
    local r = redis.call('ZSCORE', LEDGER, held[i]) and record(ref)
    if r and r[VERSION] <= SCHEMA and r[LOST] == 0 then -- a suspect keeps its slot: nobody else takes its turn
      set_aside(held[i])
      local queues = lent[r[LANE]] or {}
      queues[r[QUEUE]] = (queues[r[QUEUE]] or 0) + 1
      lent[r[LANE]], lends = queues, true
    end
  end
  for lane in pairs(lent) do crew.withdraw(lane) end
  if lends then
    redis.call('HSET', crew.LENT, wid, cmsgpack.pack(lent))
    redis.call('EXPIRE', crew.LENT, 60)
  else
    redis.call('HDEL', crew.LENT, wid)
  end
else
  redis.call('ZREM', key('workers'), wid)
  for _, of in ipairs({'slots', 'held', 'crew', 'lent'}) do redis.call('HDEL', key(of), wid) end
  for _, tag in ipairs(held) do set_aside(tag) end
end
redis.call('HDEL', crew.SUMS, 'sums')
redis.call('HDEL', key('room'), 'total')               -- the sums of a version without crews
memo = {}
total, _, _, _, old = slots('')
-- What lies ready where nobody is left goes to its lanes, and when the first is back all of it: released at their pace.
if (total + old == 0) ~= (before == 0) then recall(true) elseif known and changed then recall(false) end
-- Ordinary tasks whose body lies apart are for crews; where none is left they are for the workers that are there.
if mine == 0 and known and old > 0 then
  for i = 1, nq do
    local left, list = select(2, slots(ARGV[5 + i])) == 0, K .. ARGV[5 + i]
    for _ = 1, left and 1000 or 0 do
      if not redis.call('RPOPLPUSH', crew.ready_key('+', ARGV[5 + i]), list) then break end
    end
  end
end
if mine > 0 and changed then
  crew.wake(redis.call('SMEMBERS', crew.PARKED))
  for _, q in ipairs(redis.call('SMEMBERS', HUNGRY)) do
    for _, lane in ipairs(redis.call('ZRANGE', row_key(q), 0, -1)) do release(lane, 1000) end
  end
end
for _, q in ipairs(n_lent > 0 and redis.call('SMEMBERS', HUNGRY) or {}) do
  local free = vacant(q)
  if free > 0 then feed(math.min(free, 100)) end
end
return {total, 1}
