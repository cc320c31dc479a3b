-- The end of a call, and its way back into its lane.

local function forget(ref, r, waits)                   -- waits: true if it was not out
  if r[CLAIM] then succeed(ref, r) end
  if r[DEGRADES] then redis.call('ZREM', degradable_key(r[LANE]), ref) end
  if purse.fails(r) then redis.call('ZREM', purse.strict_key(r[LANE]), ref) end
  suspect.clear(ref, r)
  redis.call('DEL', call_key(ref), key('payload:') .. ref, key('settled:') .. ref)
  if waits then redis.call('ZREM', EXPIRY, ref) end
  -- a caller that has lost our reply may send the same call again
  redis.call('SET', key('done:') .. ref, r[PUB], 'EX', TTL_S.PUBLISHED)
end
-- Puts a call back into its lane: in its own place, or where it waits for its time. It is entered in `expiry`, from which it is
-- delivered without a permit: at its deadline, or now if it has its answer. The caller must call release.
local function go_back(ref, tag, r, due)
  ledger.leave(tag, r)
  r[SINCE] = now
  if due > now then
    wait_until(due, ref, r)
  else
    if r[SCORE] < 0 then place(load(r[LANE]), r) end   -- it expired before its time came, and then its worker died
    wait(ref, r, failing.behind(ref, r))
  end
  keep(ref, r)
  local settled = redis.call('EXISTS', key('settled:') .. ref) == 1
  redis.call('ZADD', EXPIRY, whole(settled and now or r[DEADLINE]), ref)
end
-- Where an unread message lies in its ready list: 1 near the head, -1 near the tail; nil: not found. Only the ends are searched,
-- since a list that stock producers use too may be a million long.
function crew.lies(list, text)
  if redis.call('LPOS', list, text, 'MAXLEN', 5000) then return 1 end
  if redis.call('LPOS', list, text, 'RANK', -1, 'MAXLEN', 5000) then return -1 end
end
-- Takes an unread message out of its ready list -> whether it was found. One that is missed is delivered later; begin.lua then
-- answers that it is superseded.
local function unready(ref, r, tag)
  local list, text = crew.list_of(r), text_of(ref, r, tag)
  local from = crew.lies(list, text)
  return from ~= nil and redis.call('LREM', list, from, text) == 1
end
-- Puts a released call back into its lane -> the lane, or nil if it did not go back. lost: true if the worker that ran it has
-- died. The caller must call release.
local function restore(tag, lost)
  local ref = split(tag)
  local r = record(ref)
  if not r then redis.call('ZREM', LEDGER, tag) return end  -- its record has expired; the sweep's audit does the rest
  if r[VERSION] > SCHEMA then
    redis.call('ZADD', LEDGER, 'XX', whole(now + lease_us()), tag)  -- a newer version's worker will restore it
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
-- Unread ready calls go back into their lanes: those that no worker reads any more, or (everywhere) all. O(out · ready).
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
-- Unread ready calls of a lane go back into it when some of its running calls are lent: the slots that this frees are for other
-- lanes, and these would take them first. O(out · ready).
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
-- A call that was released and has not begun goes back if it is no longer in its list, so somebody has read it.
-- restored: 1 if it may have been delivered; else as it was · lanes: gets its lane.
function crew.take_back(ref, tag, r, restored, lanes)
  if crew.lies(crew.list_of(r), text_of(ref, r, tag)) then return end
  r[RESTORED] = restored
  count('reclaimed')
  go_back(ref, tag, r, 0)
  lanes[r[LANE]] = true
end
-- Calls that an older version has released, and that somebody has read but not begun, go back: a stock worker has them, or a
-- worker of that version that does not know their task. Either would keep them until their lease ends, and their lanes would
-- wait. A worker that begins one after all is told that it is superseded. -> the lanes. O(released by that version · ends of its
-- list).
function crew.reclaim()
  local lanes = {}
  for _, q in ipairs(redis.call('SMEMBERS', key('onqueues'))) do
    for _, tag in ipairs(redis.call('SMEMBERS', crew.older_key(q))) do
      local ref = split(tag)
      local r = redis.call('ZSCORE', LEDGER, tag) and record(ref)
      local read = r and r[VERSION] <= SCHEMA and r[PERMIT] == TAKEN and r[TICKET][2] < now - crew.LOST_US
      if read then crew.take_back(ref, tag, r, r[RESTORED], lanes) end
    end
  end
  return lanes
end
-- Calls that no living worker holds (workers.unheld): those that had begun are put aside, until their lease ends. The others go
-- back at once if they were read: who read them is dead, or lost its connection with the message in it. A worker that begins one
-- after all is told that it is superseded. -> the lanes. O(those · ends of their lists).
crew.UNHELD_US = 3e6                                   -- see workers.unheld; a frozen process may still go on
function crew.forsaken()
  local lanes = {}
  for _, tag in ipairs(workers.unheld(crew.UNHELD_US)) do
    local ref = split(tag)
    local r = record(ref)
    if r and r[VERSION] <= SCHEMA and r[CREW] then
      if r[PERMIT] == USED then
        aside.put(tag, true)
      else
        crew.take_back(ref, tag, r, 1, lanes)
      end
    end
  end
  return lanes
end
