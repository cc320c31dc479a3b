-- A worker lives: its slots, queues and crew count, what it holds is renewed. O(held · log out), more when it comes or goes.
-- What it lends is set aside: it runs as many more beside its slots, so those are free for other lanes.
-- ARGV  now µs · worker · slots (0: it does not consume) · its lifetime ms · number of queues · queue … · lease µs · crew ·
--       how long the tasks of its crew are kept, s · number of tags that it lends · tag … (those first)
-- returns  {slots of all live workers, 1: the tasks of its crew are known | 0: tell them, then beat again}
local wid, mine, life, nq = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local queues, lease, name, keep_s, n_lent = {unpack(ARGV, 6, 5 + nq)}, tonumber(ARGV[6 + nq]), ARGV[7 + nq], ARGV[8 + nq],
  tonumber(ARGV[9 + nq])
local held = {}
for i = 10 + nq, #ARGV do held[#held + 1] = ARGV[i] end

local function renew()
  for _, tag in ipairs(held) do
    redis.call('ZADD', LEDGER, 'XX', int(now + lease), tag)
    -- What Redis has forgotten runs on here: nobody may run it beside, and who waits for it hears its answer.
    local done = key('done:') .. split(tag)
    if redis.call('EXISTS', call_key((split(tag)))) == 0 and (redis.call('GET', done) or memory.HELD) == memory.HELD then
      redis.call('SET', done, memory.HELD, 'PX', int(math.max(5000, lease / 1000)))
    end
  end
end
-- What an older version released may run here: it takes a slot of ours from now on.
local function adopt()
  for _, tag in ipairs(redis.call('EXISTS', key('onqueues')) == 1 and mine > 0 and held or {}) do
    local ref = split(tag)
    local r = record(ref)
    if r and r[VERSION] <= SCHEMA and not r[CREW] and redis.call('SREM', crew.older_key(r[QUEUE]), tag) == 1 then
      r[CLAIM], r[DEGRADES], r[PARENTS] = r[CLAIM] or false, r[DEGRADES] or false, r[PARENTS] or false
      ledger.adopt(tag, r, name)
      keep(ref, r)
    end
  end
end
local function lend()
  local lent, lends = {}, false
  for i = 1, n_lent do
    local ref = split(held[i])
    local r = redis.call('ZSCORE', LEDGER, held[i]) and record(ref)
    if r and r[VERSION] <= SCHEMA and r[LOST] == 0 then -- a suspect keeps its slot: nobody else takes its turn
      aside.put(held[i])
      local on = lent[r[LANE]] or {}
      on[r[QUEUE]] = (on[r[QUEUE]] or 0) + 1
      lent[r[LANE]], lends = on, true
    end
  end
  for lane in pairs(lent) do crew.withdraw(lane) end
  workers.lends(wid, lends and lent)
end
-- Ordinary tasks whose body lies apart are for crews; where none is left they are for the workers that are there.
local function leave_to_older()
  for _, q in ipairs(queues) do
    for _ = 1, select(2, slots(q)) == 0 and 1000 or 0 do
      if not redis.call('RPOPLPUSH', crew.ready_key('+', q), K .. q) then break end
    end
  end
end

if name ~= crew.ALL and redis.call('EXPIRE', key('tasks:') .. name, keep_s) == 0 and mine > 0 then return {0, 0} end
local total, _, _, _, old = slots('')
local before = total + old
if redis.call('HSETNX', PUMP, 'lease', int(lease)) == 1 then lease_us(lease) end  -- until the first sweep says it
renew()
adopt()
local entry = cmsgpack.pack({name, mine, unpack(queues)})
local known = redis.call('HGET', key('crew'), wid)
local changed = known ~= entry
if mine > 0 then
  -- Where workers of a version without crews live, its scripts count our slots too: we read its lists as well. Where none
  -- does they find no slot, so that its producers leave what they enter to our pump, and nothing to stock workers.
  workers.enter(wid, now + life * 1000, entry, held, old > 0 and {mine, unpack(queues)})
  for i = n_lent + 1, redis.call('EXISTS', ASIDE) == 1 and #held or 0 do aside.take_back(held[i]) end
  lend()
else
  workers.leave(wid)
  for _, tag in ipairs(held) do aside.put(tag) end
end
total, _, _, _, old = slots('')
-- What lies ready where nobody is left goes to its lanes, and when the first is back all of it: released at their pace.
if (total + old == 0) ~= (before == 0) then recall(true) elseif known and changed then recall(false) end
if mine == 0 and known and old > 0 then leave_to_older() end
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
