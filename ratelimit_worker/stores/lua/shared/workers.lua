-- The living workers, their slots by queue and crew, and the calls that are out but take no slot.

-- A call that is out takes a slot, unless it is aside. Aside are calls whose worker has died or takes no more calls, so that its
-- slots are not counted either, and calls that are lent. They stay in the ledger until their lease ends. DEAD: see set_begun.
local aside, slots = {DEAD = 2}, nil

-- Notes in the sets of calls out, of lane and parents, that a call has begun (1), or that its worker has died since (DEAD). Bounds
-- of the law on calls out at once leave out the latter: nobody reads their answers any more.
local function set_begun(tag, r, dead)
  local state = dead and aside.DEAD or 1
  redis.call('ZADD', out_key(r[LANE]), 'XX', state, tag)
  if r[PARENTS] then
    for _, parent in ipairs(r[PARENTS]) do redis.call('ZADD', out_key(parent), 'XX', state, tag) end
  end
end
function aside.n(queue)                                -- how many; kept with the sums of slots, which are read anyway
  if not memo.aside then slots(queue or '') end        -- queue: whose slots are asked for as well, or soon
  return memo.aside
end
function aside.changed(by)
  memo.aside = memo.aside and memo.aside + by
  redis.call('HDEL', crew.SUMS, 'sums')
end
function aside.leave(tag)                              -- -> whether it was there
  if redis.call('SREM', ASIDE, tag) == 0 then return false end
  aside.changed(-1)
  return true
end
function aside.put(tag, dead)                          -- dead: its worker is silent, so another suspect may take its turn
  if not redis.call('ZSCORE', LEDGER, tag) then return end
  local ref = split(tag)
  local r = record(ref)
  if r and redis.call('SADD', ASIDE, tag) == 1 then
    aside.changed(1)
    redis.call('SREM', crew.taken_key(r), tag)
    set_begun(tag, r, dead)
    if dead and r[LOST] > 0 then suspect.back(ref) end
    note(r[LANE], now)                                 -- it counts as begun now, for which its lane may have waited
  elseif r and dead then                               -- its worker took no more calls, and has died since
    set_begun(tag, r, true)
  end
end
function aside.take_back(tag)                          -- its worker counts its slot again
  if not aside.leave(tag) then return end
  local ref = split(tag)
  local r = record(ref)
  if r then
    redis.call('SADD', crew.taken_key(r), tag)
    set_begun(tag, r)
    if r[LOST] > 0 then suspect.mark(ref, r, true) end
  end
end
-- How many calls of a lane are out whose worker lives.
function aside.living(lane, queue)
  local k = out_key(lane)
  if aside.n(queue) == 0 then return redis.call('ZCARD', k) end
  return redis.call('ZCOUNT', k, 0, 1)
end

-- The register of workers, which only this file writes. Every change deletes the sums of slots, so that they are made anew.
-- HEARD: hash of when they last beat, µs. MARGIN_US: see unheld.
local workers = {HEARD = key('heard'), MARGIN_US = 1e6}
function workers.changed()
  memo.slots = {}
  redis.call('HDEL', crew.SUMS, 'sums')
  redis.call('HDEL', key('room'), 'total')             -- the sums of a version without crews
end
local function strike_off(worker)
  redis.call('ZREM', key('workers'), worker)
  for _, of in ipairs({'slots', 'held', 'crew', 'lent', 'heard'}) do redis.call('HDEL', key(of), worker) end
  memo.lent = nil
end
-- entry: {crew, slots, queue …}, packed; held: tags that it holds; plain: {slots, queue …} for versions without crews
function workers.enter(worker, until_us, entry, held, plain)
  redis.call('ZADD', key('workers'), whole(until_us), worker)
  redis.call('HSET', workers.HEARD, worker, whole(now))
  redis.call('HSET', key('crew'), worker, entry)
  redis.call('HSET', key('held'), worker, cmsgpack.pack(held))
  if plain then redis.call('HSET', key('slots'), worker, cmsgpack.pack(plain)) else redis.call('HDEL', key('slots'), worker) end
  workers.changed()
end
function workers.leave(worker)
  strike_off(worker)
  workers.changed()
end
function workers.lends(worker, lent)                   -- lent: {lane: {queue: calls}}; nil: none
  if lent then
    redis.call('HSET', crew.LENT, worker, cmsgpack.pack(lent))
    redis.call('EXPIRE', crew.LENT, 60)
  else
    redis.call('HDEL', crew.LENT, worker)
  end
  memo.lent = nil
end
-- Tags of calls that no living worker holds. A beat renews all that its worker holds, so these were renewed last before the last
-- beat of any living worker: who read or began them after its own last beat is dead. Messages that lie unread are among them.
-- margin_us: a call that was renewed so shortly before may have begun while a beat was on its way
function workers.unheld(margin_us)
  local living, since = redis.call('ZRANGEBYSCORE', key('workers'), whole(now), '+inf', 'LIMIT', 0, 5000), now
  if #living == 0 then return {} end
  for _, at in ipairs(redis.call('HMGET', workers.HEARD, unpack(living))) do
    if not at then return {} end                       -- a worker of an older version, which does not note when it beat
    since = math.min(since, tonumber(at))
  end
  return redis.call('ZRANGEBYSCORE', LEDGER, '-inf', '(' .. int(since - margin_us + lease_us()), 'LIMIT', 0, 1000)
end
-- Calls that a dead worker had begun since its last beat are put aside too, for they were in no report of it.
function workers.put_unheld_aside()
  for _, tag in ipairs(workers.unheld(workers.MARGIN_US)) do
    local r = record((split(tag)))
    if r and r[VERSION] <= SCHEMA and r[PERMIT] == USED then aside.put(tag, true) end
  end
end
-- Workers whose beats have stopped are removed, and the calls that they hold are put aside.
local function bury()
  local dead = redis.call('ZRANGEBYSCORE', key('workers'), '-inf', '(' .. int(now))
  for _, w in ipairs(dead) do
    local held = redis.call('HGET', key('held'), w)
    for _, tag in ipairs(held and cmsgpack.unpack(held) or {}) do aside.put(tag, true) end
    strike_off(w)
  end
  if #dead > 0 then workers.put_unheld_aside() end
end
-- Adds a worker to the sums. w: {…, queue from `from` on …}; name: its crew, nil: it has none
local function add_up(sums, name, w, from)
  local mine = w[from - 1]
  if name then sums.total = sums.total + mine else sums.old = sums.old + mine end
  for j = from, #w do
    local q = sums.by[w[j]] or {0, 0}                  -- {slots, slots of an older version, {crew, slots} …}
    sums.by[w[j]] = q
    if name then
      local c
      for k = 3, #q do c = q[k][1] == name and q[k] or c end
      if not c then c = {name, 0, false, 0}; q[#q + 1] = c end
      q[1], c[2], c[4] = q[1] + mine, c[2] + mine, c[4] + 1
    else
      q[2] = q[2] + mine
    end
  end
end
local function count_slots()                           -- of the living -> {total, old, by queue}
  local alive, sums = {}, {total = 0, old = 0, by = {}}
  for _, w in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), whole(now), '+inf')) do alive[w] = true end
  local flat = redis.call('HGETALL', key('crew'))
  for i = 1, #flat, 2 do
    local w = cmsgpack.unpack(flat[i + 1])
    if alive[flat[i]] then
      add_up(sums, w[1], w, 3)
    elseif not asking then
      redis.call('HDEL', key('crew'), flat[i])
    end
    alive[flat[i]] = nil
  end
  flat = redis.call('HGETALL', key('slots'))
  for i = 1, #flat, 2 do                               -- those of an older version: the others have been counted
    if alive[flat[i]] then
      add_up(sums, string.find(flat[i], 'inproc:', 1, true) == 1 and crew.PLAIN or nil, cmsgpack.unpack(flat[i + 1]), 2)
    end
  end
  return sums
end
-- The sums for a queue as they are stored -> decoded: sums, and what `slots` returns. What was decoded is kept from one script to
-- the next (of KEPT queues), since it changes only with a worker and is needed for every release.
workers.KEPT, workers.by, workers.n = 100, {}, 0
function workers.decoded(queue, sums, here)
  local d = workers.by[queue]
  if not d or d.sums ~= sums or d.here ~= here then
    local s, crews = cmsgpack.unpack(sums), here and cmsgpack.unpack(here) or {0, 0}
    if workers.n >= workers.KEPT then workers.by, workers.n = {}, 0 end
    if not workers.by[queue] then workers.n = workers.n + 1 end
    d = {sums = sums, here = here, s = s, row = {s[1], crews[1], {unpack(crews, 3)}, crews[2], s[4]}}
    workers.by[queue] = d
  end
  for _, c in ipairs(d.row[3]) do c[3] = false end     -- `free` is counted anew in each script
  return d.s, d.row
end
-- Slots of living workers, counted once and kept until the first of these workers would expire. For a queue -> slots of all
-- workers with a crew, on any queue; those on this queue; its crews, each {name, slots, free (see vacant), workers}; slots on
-- this queue of workers of an older version, which read other ready lists; slots of all such workers
function slots(queue)
  local known = memo.slots[queue]
  if known then return unpack(known) end
  local h = redis.call('HMGET', crew.SUMS, 'sums', 'q:' .. queue, 'on:' .. queue)
  local kept, row
  if h[1] then kept, row = workers.decoded(queue, h[1], h[2]) end
  if kept then lease_us(kept[3]) end
  if kept and now <= kept[2] and kept[5] then          -- kept[5] is absent if an older version has counted
    memo.aside = memo.aside or kept[5]
    if h[3] then memo.oncrew[crew.at(h[3], queue)] = true end
    memo.slots[queue] = row
    return unpack(row)
  end
  if not asking then bury() end
  local sums = count_slots()
  memo.aside = redis.call('SCARD', ASIDE)
  if not asking then
    local first = redis.call('ZRANGE', key('workers'), 0, 0, 'WITHSCORES')
    redis.call('DEL', crew.SUMS)
    redis.call('HSET', crew.SUMS, 'sums', cmsgpack.pack({sums.total, tonumber(first[2] or now), lease_us(), sums.old,
      memo.aside}))
    for q, crews in pairs(sums.by) do redis.call('HSET', crew.SUMS, 'q:' .. q, cmsgpack.pack(crews)) end
    redis.call('EXPIRE', crew.SUMS, 60)
  end
  local here = sums.by[queue] or {0, 0}
  memo.slots[queue] = {sums.total, here[1], {unpack(here, 3)}, here[2], sums.old}
  return unpack(memo.slots[queue])
end
function suspect.processes(queue)                      -- workers that take calls of a queue
  local _, _, crews = slots(queue)
  local n = 0
  for _, c in ipairs(crews) do n = n + (c[4] or 1) end
  return math.max(1, n)
end
-- Calls that are lent take no slot from other lanes: they hang, or their lane has more than its share of the slots, and their
-- workers run as many more calls beside them (see beat.lua). For their own lane they count: it never has more calls out than its
-- queue has slots. -> that bound, by lane; number of lent calls, by queue
function crew.lent(queue)
  if not memo.lent then
    local bounds, on = {}, {}
    for _, packed in ipairs(aside.n(queue) > 0 and redis.call('HVALS', crew.LENT) or {}) do
      for lane, queues in pairs(cmsgpack.unpack(packed)) do
        for q, n in pairs(queues) do
          bounds[lane], on[q] = math.max(bounds[lane] or 0, (select(2, slots(q)))), (on[q] or 0) + n
        end
      end
    end
    memo.lent = {bounds, on}
  end
  return unpack(memo.lent)
end
