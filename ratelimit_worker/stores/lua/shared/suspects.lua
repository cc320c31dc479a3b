-- Suspects: calls that ran when their worker died, one of which may have killed it. A call stops being a suspect when an
-- attempt at it ends. After one loss it runs beside few other suspects (`share`), spread over all processes; after two it gets
-- a process for itself (`alone`), so that a third loss is surely its own doing; then it is given up. A suspect that may not go
-- yet waits as for a time. MOST_LOST: losses after which a call is given up. STEPS: how often the share doubles within a lease.
-- AGAIN_US: when a suspect asks again; PAUSE_US: the same for one that came to the wrong process. AT: hash of where suspects
-- run; ALONE before a process there: one suspect has it for itself. SILENT_US: a process that was silent for so long is dead.
local suspect = {MOST_LOST = 3, STEPS = 24, AGAIN_US = 1e6, PAUSE_US = 0.25e6,
  SILENT_US = 4e6, AT = key('suspects:at'), ALONE = '!'}

-- The decisions, from numbers alone.

-- How many calls that were lost once may run in one process. It is 1 at first and doubles at each step, so that a call that
-- kills quickly takes few others with it. It ends at a third of all suspects, spread over the processes, so that three rounds
-- are enough for all; half of that after each further loss. party: most suspects known at once; again: further losses among
-- them; waited: how long this one has waited, in leases.
function suspect.share(party, processes, again, waited)
  local most = math.max(1, math.ceil(party / (3 * 2 ^ math.min(again, 20) * processes)))
  return math.min(most, 2 ^ math.min(30, math.max(0, math.floor(waited * suspect.STEPS))))
end
-- How many processes may be given to single suspects: all but one, which is for other calls.
function suspect.alone(processes) return math.max(1, processes - 1) end

-- What is known. The score of a suspect: it waits, it is out, or it is out and gets a process for itself.
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
function suspect.known()                               -- -> party and again: see share
  local h = redis.call('HMGET', PUMP, 'party', 'again')
  return tonumber(h[1] or '0'), tonumber(h[2] or '0')
end
function suspect.share_of(r)
  local party, again = suspect.known()
  local processes = suspect.processes(r[QUEUE])
  return suspect.share(party, processes, again, suspect.waited(r)), processes
end
function suspect.places()                               -- -> {suspect: process …}; how many processes are given to single suspects
  local at, flat, alone = {}, redis.call('HGETALL', suspect.AT), 0
  for i = 1, #flat, 2 do
    at[flat[i]] = flat[i + 1]
    if string.sub(flat[i + 1], 1, 1) == suspect.ALONE then alone = alone + 1 end
  end
  return at, alone
end
function suspect.waited(r) return (now - r[SINCE]) / lease_us() end

-- Whether a suspect may be released now. One that is to be given up may: it is only told so, and does not run.
function suspect.may_go(r)
  if r[LOST] >= suspect.MOST_LOST then return true end
  local share, processes = suspect.share_of(r)
  if suspect.last(r) then
    local _, alone = suspect.places()
    return redis.call('ZCOUNT', SUSPECTS, suspect.OUT_ALONE, suspect.OUT_ALONE) < suspect.alone(processes + alone)
  end
  return redis.call('ZCOUNT', SUSPECTS, suspect.OUT, suspect.OUT) < processes * share
end
-- Whether a suspect that a process has read must run in another process. One that is to be alone looks for a process without
-- other suspects for up to half a lease: if it waited beside one that kills, it would be lost with it.
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
function suspect.sits(ref, r, process)                 -- notes that it runs there, or waits there until nothing else runs
  if r[LOST] == 0 or process == '' then return end
  redis.call('HSET', suspect.AT, ref, (suspect.last(r) and suspect.ALONE or '') .. process)
  redis.call('EXPIRE', suspect.AT, TTL_S.LANE)
end
function suspect.again_us() return math.min(suspect.AGAIN_US, lease_us() / suspect.STEPS) end
function suspect.wake_next()                           -- one is not out any more: two waiting suspects may ask at once
  local woken = 0
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', SUSPECTS, suspect.WAITS, suspect.WAITS, 'LIMIT', 0, 16)) do
    local r = record(ref)
    if r and redis.call('ZADD', due_key(r[LANE], r[QUEUE]), 'XX', 'CH', whole(now), ref) == 1 then
      note(r[LANE], now)
      woken = woken + 1
      if woken == 2 then return end
    end
  end
end
function suspect.waits(ref)                            -- notes that it is not out -> whether it was
  redis.call('HDEL', suspect.AT, ref)
  return redis.call('ZADD', SUSPECTS, 'XX', 'CH', suspect.WAITS, ref) == 1
end
function suspect.back(ref)                             -- it is not out any more, so the next may go
  if suspect.waits(ref) then suspect.wake_next() end
end
function suspect.drop(ref)                             -- it is not a suspect any more
  redis.call('HDEL', suspect.AT, ref)
  local was = redis.call('ZREM', SUSPECTS, ref) == 1
  if was and redis.call('EXISTS', SUSPECTS) == 0 then redis.call('HDEL', PUMP, 'party', 'again') end
  return was
end
function suspect.clear(ref, r)
  if r[LOST] > 0 and suspect.drop(ref) then suspect.wake_next() end
end
-- The audit: a suspect that is noted as out must be in the ledger. O(suspects, at most 200 of them)
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
  -- A process that one suspect has for itself offers no slots, so its death is not noticed by the slots. Its beats renew the
  -- call's lease: if that has not been renewed for a while, the process is dead.
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
