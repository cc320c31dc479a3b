-- Who works: the living workers, their slots by queue and crew, and the calls that are out on no slot of theirs.

local function set_begun(tag, r)                       -- in all that counts what is out
  redis.call('ZADD', out_key(r[LANE]), 'XX', 1, tag)
  if r[PARENTS] then
    for _, parent in ipairs(r[PARENTS]) do redis.call('ZADD', out_key(parent), 'XX', 1, tag) end
  end
end
-- A call that is out takes a slot, but for those set aside: their worker died or takes no more calls, so that they run
-- (if they do) on slots that are not counted either. They keep their place in the ledger until their lease ends.
local aside, slots = {}, nil
function aside.n()                                     -- kept with the sums of slots, which are asked for anyway
  if not memo.aside then slots('') end
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
function aside.put(tag, dead)                          -- dead: its worker has not been heard of, so others may have its turn
  if not redis.call('ZSCORE', LEDGER, tag) then return end
  local ref = split(tag)
  local r = record(ref)
  if r and redis.call('SADD', ASIDE, tag) == 1 then
    aside.changed(1)
    redis.call('SREM', crew.taken_key(r), tag)
    set_begun(tag, r)
    if dead and r[LOST] > 0 then suspect.back(ref) end
    note(r[LANE], now)                                 -- one that had not begun may have kept its lane full
  end
end
function aside.take_back(tag)                          -- its worker counts its slot again
  if not aside.leave(tag) then return end
  local ref = split(tag)
  local r = record(ref)
  if r then
    redis.call('SADD', crew.taken_key(r), tag)
    if r[LOST] > 0 then suspect.mark(ref, r, true) end
  end
end

-- The register of workers. Nobody else writes it; whatever changes it makes the sums of slots anew.
local workers = {}
function workers.changed()
  memo.slots = {}
  redis.call('HDEL', crew.SUMS, 'sums')
  redis.call('HDEL', key('room'), 'total')             -- the sums of a version without crews
end
local function strike_off(worker)
  redis.call('ZREM', key('workers'), worker)
  for _, of in ipairs({'slots', 'held', 'crew', 'lent'}) do redis.call('HDEL', key(of), worker) end
  memo.lent = nil
end
-- entry: {crew, slots, queue …}, packed; held: tags that it holds; plain: {slots, queue …} for versions without crews
function workers.enter(worker, until_us, entry, held, plain)
  redis.call('ZADD', key('workers'), int(until_us), worker)
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
-- Workers whose beats have stopped: what they hold counts as taken until somebody has cleared it away.
local function bury()
  for _, w in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '-inf', '(' .. int(now))) do
    local held = redis.call('HGET', key('held'), w)
    for _, tag in ipairs(held and cmsgpack.unpack(held) or {}) do aside.put(tag, true) end
    strike_off(w)
  end
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
  for _, w in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), int(now), '+inf')) do alive[w] = true end
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
-- Workers that live, counted once and kept until the first of them would expire: for a queue, the slots of all that have a
-- crew, those on this queue, its crews as {name, slots, free (see vacant), workers}, slots on it of workers of an older version, which
-- read other ready lists; and the slots of all such
function slots(queue)
  local known = memo.slots[queue]
  if known then return unpack(known) end
  local h = redis.call('HMGET', crew.SUMS, 'sums', 'q:' .. queue, 'on:' .. queue)
  local kept = h[1] and cmsgpack.unpack(h[1])
  if kept then lease_us(kept[3]) end
  if kept and now <= kept[2] and kept[5] then          -- absent where an older version has counted
    memo.aside = memo.aside or kept[5]
    if h[3] then memo.oncrew[crew.at(h[3], queue)] = true end
    local crews = h[2] and cmsgpack.unpack(h[2]) or {0, 0}
    memo.slots[queue] = {kept[1], crews[1], {unpack(crews, 3)}, crews[2], kept[4]}
    return unpack(memo.slots[queue])
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
-- Calls that are lent keep no slot from others: they hang, or their lane has them beyond its share, and their workers run
-- as many more in their place (see beat.lua). For the lane itself they count: it never has more out than there are slots where
-- it has such calls. -> by lane, that bound; by queue, how many there are
function crew.lent()
  if not memo.lent then
    local bounds, on = {}, {}
    for _, packed in ipairs(aside.n() > 0 and redis.call('HVALS', crew.LENT) or {}) do
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
