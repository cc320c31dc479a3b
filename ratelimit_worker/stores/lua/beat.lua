-- A worker reports that it is alive: its slots count for its queues and crew, and the leases of its calls are renewed. Calls that
-- it lends take no slot: it runs as many more beside its slots. O(held · log out), more when a worker comes or goes.
-- ARGV  now µs · worker · slots (0: it takes no calls) · how long it counts as alive, ms · number of queues · queue … ·
--       lease µs · crew · how long the names of its crew's tasks are kept, s · number of tags that it lends · tag … (lent ones
--       first)
-- returns  {slots of all live workers, 1: the names of its crew's tasks are known | 0: store them first, then beat again}
local wid, mine, life, nq = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local queues, lease, name, keep_s, n_lent = {unpack(ARGV, 6, 5 + nq)}, tonumber(ARGV[6 + nq]), ARGV[7 + nq], ARGV[8 + nq],
  tonumber(ARGV[9 + nq])
local held = {}
for i = 10 + nq, #ARGV do held[#held + 1] = ARGV[i] end

-- Redis has forgotten this call, but it runs on here: nobody else may run it, and its caller will still get its answer.
local function hold(ref)
  local done = key('done:') .. ref
  if redis.call('EXISTS', call_key(ref)) == 0 and (redis.call('GET', done) or memory.HELD) == memory.HELD then
    redis.call('SET', done, memory.HELD, 'PX', whole(math.max(5000, lease / 1000)))
  end
end
local function renew()
  for from = 1, #held, batch.MOST / 2 do
    local leases, calls = {}, {}
    for i = from, math.min(#held, from + batch.MOST / 2 - 1) do
      leases[#leases + 1], leases[#leases + 2] = whole(now + lease), held[i]
      calls[#calls + 1] = call_key((split(held[i])))
    end
    redis.call('ZADD', LEDGER, 'XX', unpack(leases))
    local all_there = redis.call('EXISTS', unpack(calls)) == #calls
    for i = from, all_there and 0 or from + #calls - 1 do hold((split(held[i]))) end
  end
end
-- A worker may run calls that an older version has released: they take slots of its crew from now on.
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
    if r and r[VERSION] <= SCHEMA and r[LOST] == 0 then -- a suspect is not lent: no other may run beside it in its place
      aside.put(held[i])
      local on = lent[r[LANE]] or {}
      on[r[QUEUE]] = (on[r[QUEUE]] or 0) + 1
      lent[r[LANE]], lends = on, true
    end
  end
  for lane in pairs(lent) do crew.withdraw(lane) end
  workers.lends(wid, lends and lent)
end
-- Ordinary tasks whose body is stored apart are in a list for crews. If no crew is left, they go to the queue's plain list, for
-- workers of an older version.
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
if redis.call('HSETNX', PUMP, 'lease', whole(lease)) == 1 then lease_us(lease) end  -- until the first sweep sets it
renew()
adopt()
local entry = cmsgpack.pack({name, mine, unpack(queues)})
local known = redis.call('HGET', key('crew'), wid)
local changed = known ~= entry
if mine > 0 then
  -- While workers of a version without crews live, that version's scripts count our slots too, since we also read its lists.
  -- If there are no such workers, those scripts must find no slots: then that version's producers release no calls, which stock
  -- workers might take, and our pump releases them.
  workers.enter(wid, now + life * 1000, entry, held, old > 0 and {mine, unpack(queues)})
  if not known then workers.put_unheld_aside() end     -- of one that died while no other lived
  for i = n_lent + 1, redis.call('EXISTS', ASIDE) == 1 and #held or 0 do aside.take_back(held[i]) end
  lend()
else
  workers.leave(wid)
  for _, tag in ipairs(held) do aside.put(tag) end
end
total, _, _, _, old = slots('')
-- When the last worker leaves, ready calls go back to their lanes. When the first worker comes again, all that are still ready
-- go back too, so that they are released at their lanes' pace.
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
