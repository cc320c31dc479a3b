-- The end of a call, and its way back into its lane.

local function forget(ref, r, waits)                   -- waits: it is not out
  if r[CLAIM] then succeed(ref, r) end
  if r[DEGRADES] then redis.call('ZREM', degradable_key(r[LANE]), ref) end
  suspect.clear(ref, r)
  redis.call('DEL', call_key(ref), key('payload:') .. ref, key('settled:') .. ref)
  if waits then redis.call('ZREM', EXPIRY, ref) end
  -- who lost our reply may send the same once more
  redis.call('SET', key('done:') .. ref, r[PUB], 'EX', TTL_S.PUBLISHED)
end
-- Back into the lane: to its own place, or to its time. `expiry` says when it is delivered without a permit: at its
-- deadline, or now when it has its answer. The caller releases.
local function go_back(ref, tag, r, due)
  ledger.leave(tag, r)
  r[SINCE] = now
  if due > now then
    wait_until(due, ref, r)
  else
    if r[SCORE] < 0 then place(load(r[LANE]), r) end   -- expired before its time had come, and its worker died
    wait(ref, r, failing.behind(ref, r))
  end
  keep(ref, r)
  local settled = redis.call('EXISTS', key('settled:') .. ref) == 1
  redis.call('ZADD', EXPIRY, int(settled and now or r[DEADLINE]), ref)
end
-- Where a message lies in its ready list that nobody has read: 1 in its head, -1 in its tail; nil: nowhere. The list may be a
-- stock producer's and a million long, so only its ends are searched.
function crew.lies(list, text)
  if redis.call('LPOS', list, text, 'MAXLEN', 5000) then return 1 end
  if redis.call('LPOS', list, text, 'RANK', -1, 'MAXLEN', 5000) then return -1 end
end
-- Takes it out of there -> whether it lay there. What is not found is delivered one day, and begin calls it stale.
local function unready(ref, r, tag)
  local list, text = crew.list_of(r), text_of(ref, r, tag)
  local from = crew.lies(list, text)
  return from ~= nil and redis.call('LREM', list, from, text) == 1
end
-- A worker died (lost: while it ran what had begun), or the message lay unread -> the lane when the call went back. The
-- caller releases.
local function restore(tag, lost)
  local ref = split(tag)
  local r = record(ref)
  if not r then redis.call('ZREM', LEDGER, tag) return end  -- its record outlived its time; the audit does the rest
  if r[VERSION] > SCHEMA then
    redis.call('ZADD', LEDGER, 'XX', int(now + lease_us()), tag)  -- a newer worker's to restore
    return
  end
  if r[PERMIT] == USED then
    if lost then r[LOST] = r[LOST] + 1 end
    r[RESTORED] = 1
  elseif not unready(ref, r, tag) then
    r[RESTORED] = 1
  end
  go_back(ref, tag, r, 0)
  if r[LOST] > 0 then suspect.mark(ref, r) end
  return r[LANE]
end
-- What lies ready and unread goes back: where nobody reads it any more, or all of it. O(out · ready).
local function recall(everywhere)
  for _, lane in ipairs(redis.call('SMEMBERS', key('busy'))) do
    for _, tag in ipairs(redis.call('ZRANGEBYSCORE', out_key(lane), 0, 0)) do
      local ref = split(tag)
      local r = record(ref)
      if r and r[VERSION] <= SCHEMA then
        local _, here, crews, older = slots(r[QUEUE])
        local read = not r[CREW] and here + older > 0
        for _, c in ipairs(crews) do read = read or c[1] == r[CREW] end
        if (everywhere or not read) and unready(ref, r, tag) then
          go_back(ref, tag, r, 0)
          note(r[LANE], now)
        end
      end
    end
  end
end
-- What lies ready of a lane some of whose calls are lent goes back: it stands before those for which they are. O(out · ready).
function crew.withdraw(lane)
  for _, tag in ipairs(redis.call('ZRANGEBYSCORE', out_key(lane), 0, 0)) do
    local ref = split(tag)
    local r = record(ref)
    if r and r[VERSION] <= SCHEMA and unready(ref, r, tag) then
      go_back(ref, tag, r, 0)
      note(lane, now)
    end
  end
end
-- What an older version has released, that somebody has read and not begun, goes back: a stock worker took it, or a worker of
-- that version that does not know its task. Either would keep it until its lease ends, and its lane would wait. Whoever begins
-- it after all is told that it is stale. -> the lanes. O(released by the older version · ends of its list).
function crew.reclaim()
  local lanes = {}
  for _, q in ipairs(redis.call('SMEMBERS', key('onqueues'))) do
    for _, tag in ipairs(redis.call('SMEMBERS', crew.older_key(q))) do
      local ref = split(tag)
      local r = redis.call('ZSCORE', LEDGER, tag) and record(ref)
      local read = r and r[VERSION] <= SCHEMA and r[PERMIT] == TAKEN and r[TICKET][2] < now - crew.LOST_US
      if read and not crew.lies(crew.list_of(r), text_of(ref, r, tag)) then
        count('reclaimed')
        go_back(ref, tag, r, 0)
        lanes[r[LANE]] = true
      end
    end
  end
  return lanes
end
