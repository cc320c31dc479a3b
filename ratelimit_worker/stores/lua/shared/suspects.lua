-- Calls that ran when their worker died: one of them may have killed it. Each is a suspect until it ends well. A call that was
-- lost once runs again beside few other suspects (`share`), in as many processes as there are; one that was lost twice has a
-- process for itself (`alone`), so that its third loss is its own doing; after that it is given up. A suspect that may not go
-- yet waits as for a time.
-- STEPS: the share doubles so often within a lease. A suspect asks again after AGAIN_US; one that came to the wrong process
-- after PAUSE_US. AT: where suspects run; a process that one has for itself is marked with ALONE.
-- SILENT_US: a process that has not been heard of for so long is dead.
local suspect = {MOST_LOST = 3, STEPS = 24, AGAIN_US = 1e6, PAUSE_US = 0.25e6,
  SILENT_US = 4e6, AT = key('suspects:at'), ALONE = '!'}

-- The decisions: numbers alone.

-- How many calls that were lost once may run in one process. party: suspects that were known at once; again: how often some
-- of them were lost again since then, so that one of them kills; waited: for how long this one has, in leases. One at first,
-- then twice as many at each step, so that a call that kills soon takes few along; at most such that three turns are enough
-- for all, and half of that after each further loss.
function suspect.share(party, processes, again, waited)
  local most = math.max(1, math.ceil(party / (3 * 2 ^ math.min(again, 20) * processes)))
  return math.min(most, 2 ^ math.min(30, math.max(0, math.floor(waited * suspect.STEPS))))
end
-- How many processes may belong to one suspect each: all but one, which others have.
function suspect.alone(processes) return math.max(1, processes - 1) end

-- What is known. A suspect's score says where it is: it waits, is out, or is out for a process of its own.
suspect.WAITS, suspect.OUT, suspect.OUT_ALONE = 0, 1, 2
function suspect.last(r) return r[LOST] == suspect.MOST_LOST - 1 end
function suspect.mark(ref, r, out)
  redis.call('ZADD', SUSPECTS, out and (suspect.last(r) and suspect.OUT_ALONE or suspect.OUT) or suspect.WAITS, ref)
  redis.call('EXPIRE', SUSPECTS, TTL_S.LANE)
  local n = redis.call('ZCARD', SUSPECTS)
  if n > (suspect.known()) then redis.call('HSET', PUMP, 'party', n) end
  if not out and r[LOST] > 1 and not memo.again then
    memo.again = true
    redis.call('HINCRBY', PUMP, 'again', 1)
  end
end
function suspect.known()                               -- party and again: see share
  local h = redis.call('HMGET', PUMP, 'party', 'again')
  return tonumber(h[1] or '0'), tonumber(h[2] or '0')
end
function suspect.share_of(r)
  local party, again = suspect.known()
  local processes = suspect.processes(r[QUEUE])
  return suspect.share(party, processes, again, suspect.waited(r)), processes
end
function suspect.places()                               -- {process …}, by suspect; how many processes belong to one each
  local at, flat, alone = {}, redis.call('HGETALL', suspect.AT), 0
  for i = 1, #flat, 2 do
    at[flat[i]] = flat[i + 1]
    if string.sub(flat[i + 1], 1, 1) == suspect.ALONE then alone = alone + 1 end
  end
  return at, alone
end
function suspect.waited(r) return (now - r[SINCE]) / lease_us() end

-- Whether a suspect may leave its lane now. One whose losses are up only fetches its verdict.
function suspect.may_go(r)
  if r[LOST] >= suspect.MOST_LOST then return true end
  local share, processes = suspect.share_of(r)
  if suspect.last(r) then
    local _, alone = suspect.places()
    return redis.call('ZCOUNT', SUSPECTS, suspect.OUT_ALONE, suspect.OUT_ALONE) < suspect.alone(processes + alone)
  end
  return redis.call('ZCOUNT', SUSPECTS, suspect.OUT, suspect.OUT) < processes * share
end
-- Whether a suspect that a process has fetched has to run in another. One that is to be alone looks for a process without
-- other suspects for half a lease: should it wait beside one that kills, it would be lost once more.
function suspect.elsewhere(ref, r, process)
  if r[LOST] == 0 or r[LOST] >= suspect.MOST_LOST or process == '' then return false end
  local here = 0
  for other, where in pairs((suspect.places())) do
    if other ~= ref and where == suspect.ALONE .. process then return true end
    if other ~= ref and where == process then here = here + 1 end
  end
  if suspect.last(r) then return here > 0 and suspect.waited(r) < 0.5 end
  return here >= (suspect.share_of(r))
end
function suspect.sits(ref, r, process)                 -- it runs there, or waits there to be alone
  if r[LOST] == 0 or process == '' then return end
  redis.call('HSET', suspect.AT, ref, (suspect.last(r) and suspect.ALONE or '') .. process)
  redis.call('EXPIRE', suspect.AT, TTL_S.LANE)
end
function suspect.again_us() return math.min(suspect.AGAIN_US, lease_us() / suspect.STEPS) end
function suspect.wake_next()                           -- one is out no more: two that wait need not ask later
  local woken = 0
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', SUSPECTS, suspect.WAITS, suspect.WAITS, 'LIMIT', 0, 16)) do
    local r = record(ref)
    if r and redis.call('ZADD', due_key(r[LANE], r[QUEUE]), 'XX', 'CH', int(now), ref) == 1 then
      note(r[LANE], now)
      woken = woken + 1
      if woken == 2 then return end
    end
  end
end
function suspect.waits(ref)                            -- out no more -> whether it was
  redis.call('HDEL', suspect.AT, ref)
  return redis.call('ZADD', SUSPECTS, 'XX', 'CH', suspect.WAITS, ref) == 1
end
function suspect.back(ref)                             -- its process is gone, or its turn is over: the next may go
  if suspect.waits(ref) then suspect.wake_next() end
end
function suspect.drop(ref)                             -- a suspect no more
  redis.call('HDEL', suspect.AT, ref)
  local was = redis.call('ZREM', SUSPECTS, ref) == 1
  if was and redis.call('EXISTS', SUSPECTS) == 0 then redis.call('HDEL', PUMP, 'party', 'again') end
  return was
end
function suspect.clear(ref, r)
  if r[LOST] > 0 and suspect.drop(ref) then suspect.wake_next() end
end
-- The audit: what is taken for out is in the ledger. O(suspects, at most 200 of them)
function suspect.audit()
  local some = redis.call('ZRANGE', SUSPECTS, 0, 199, 'REV', 'WITHSCORES')  -- those that are out first
  for i = 1, #some, 2 do
    local ref = some[i]
    local r = record(ref)
    if not r then
      suspect.drop(ref)
    elseif tonumber(some[i + 1]) ~= suspect.WAITS and not redis.call('ZSCORE', LEDGER, ref .. '.' .. int(r[RELEASE])) then
      suspect.back(ref)
      count('leaks')
    end
  end
  -- A process that one has for itself offers no slots, so that nobody misses it when it dies: its beats renew the lease.
  local heard = now + lease_us() - math.min(suspect.SILENT_US, lease_us() / 2)
  for ref, where in pairs((suspect.places())) do
    local r = redis.call('ZSCORE', SUSPECTS, ref) and record(ref)
    local ends = r and redis.call('ZSCORE', LEDGER, ref .. '.' .. int(r[RELEASE]))
    if not r then
      redis.call('HDEL', suspect.AT, ref)
    elseif ends and tonumber(ends) < heard and string.sub(where, 1, 1) == suspect.ALONE then
      suspect.back(ref)                                -- the next has its turn; the call itself waits for its lease to end
    end
  end
end
