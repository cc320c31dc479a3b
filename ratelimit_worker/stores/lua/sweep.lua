-- Return calls whose lease has ended to their lanes, and those that were read by a worker which died before it began them; then
-- audit: find lanes and tags that were left behind, and count anew.
-- O(expired + out + lanes at a time).
-- ARGV  now µs · lease µs · most
-- returns  how many went back
local LANES_AT_A_TIME = 200
local lease, n = lease_us(tonumber(ARGV[2])), 0
local h = redis.call('HMGET', PUMP, 'swept', 'grace', 'audit')
local cursor = tonumber(h[3] or '0')
local function grace(swept, ends)                      -- -> until when an ended lease does not mean a dead worker, µs
  -- the clock was set back: nothing may wait for a time that was planned on the old clock
  if swept > now + STEP_US then
    pump.replan()
    ends = math.min(ends, now + lease / 2)
  end
  -- nobody swept for a while (Redis or all workers were away), so every lease has ended: let living workers renew theirs first
  return now - swept > lease / 2 and now + lease / 2 or ends
end
redis.call('HSET', PUMP, 'lease', whole(lease), 'swept', whole(now))
local grace_ends = grace(tonumber(h[1] or '0'), tonumber(h[2] or '0'))
redis.call('HSET', PUMP, 'grace', whole(grace_ends))
if now < grace_ends then return 0 end
local touched = {}                                     -- lanes that may release more now
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', LEDGER, '-inf', whole(now), 'LIMIT', 0, ARGV[3])) do
  local lane = restore(tag, true)
  if lane then n = n + 1; touched[lane] = true end
end
if n > 0 then count('restored', n) end
for lane in pairs(crew.forsaken()) do touched[lane] = true end
recall(false)

-- Audit: the sets from which free slots and bounds are counted must hold nothing that the ledger does not hold.
local function prune(tags, drop, lane)
  for _, tag in ipairs(tags) do
    if not redis.call('ZSCORE', LEDGER, tag) then
      drop(tag)
      count('leaks')
      if lane then touched[lane] = true end
    end
  end
end
local function prune_set(k) prune(redis.call('SMEMBERS', k), function(tag) redis.call('SREM', k, tag) end) end
local function audit_lane(lane)
  local k = out_key(lane)
  prune(redis.call('ZRANGE', k, 0, -1), function(tag) redis.call('ZREM', k, tag) end, lane)
  if redis.call('EXISTS', k) == 0 then ledger.idle(lane) end
end
local function audit_queue(q)                          -- released by an older version
  prune_set(crew.older_key(q))
  if redis.call('EXISTS', crew.older_key(q)) == 0 then redis.call('SREM', key('onqueues'), q) end
end
local function audit_crew(at)
  local name, q = string.match(at, '^([^:]*):(.*)$')
  local k, read = crew.out_key(name, q), false
  prune_set(k)
  if redis.call('EXISTS', k) == 1 then return end
  local _, _, crews = slots(q)
  for _, c in ipairs(crews) do read = read or c[1] == name end
  if not read then redis.call('DEL', crew.ready_key(name, q)) end  -- left-over messages that no worker reads
  ledger.idle_crew(at)
end
for _, lane in ipairs(redis.call('SMEMBERS', key('busy'))) do audit_lane(lane) end
for _, q in ipairs(redis.call('SMEMBERS', key('onqueues'))) do audit_queue(q) end
for _, at in ipairs(redis.call('SMEMBERS', key('oncrews'))) do audit_crew(at) end
prune(redis.call('SMEMBERS', ASIDE), aside.leave)
suspect.audit()
for lane in pairs(touched) do
  release(lane, 1)
  wake(lane)
end

-- A lane that was not used for a day is deleted, unless a person has configured it (settings, `limits set`, a pin), it is
-- halted, it is a parent, or it has sent IDLE.CALLS requests, so that what it has learned is worth keeping.
local IDLE = {US = DAY_US, CALLS = 100}
local function stays(lane)
  local h = redis.call('HMGET', lane_key(lane), FIELD.CONFIGURED, FIELD.RPM, FIELD.TPM, FIELD.CONCURRENCY,
    FIELD.BOUNDS, FIELD.SHARED, FIELD.UNPACED, FIELD.MODE, FIELD.SENT[1])
  for i = 1, 6 do
    if h[i] and h[i] ~= '' and h[i] ~= '0' then return true end
  end
  return h[7] == '1' or h[8] == 'HALT' or (tonumber(h[9]) or 0) >= IDLE.CALLS
    or redis.call('HEXISTS', key('pins'), lane) == 1 or redis.call('EXISTS', turns_key(lane)) == 1
end
local function forget_idle(lane, used_us)              -- -> 1 if it was deleted
  if used_us >= now - IDLE.US then return 0 end
  if redis.call('EXISTS', lane_key(lane)) == 1 then
    if stays(lane) then return 0 end
    redis.call('DEL', lane_key(lane), key('seen:') .. lane, key('tenants:') .. lane, key('probed:') .. lane)
    redis.call('SREM', key('seen'), lane)
    redis.call('SREM', key('urgent'), lane)
    note(lane, nil)
  end
  redis.call('ZREM', key('lanes'), lane)
  return 1
end
-- Audit: a lane with waiting calls must be planned; some lanes each time, all in turn.
local some, gone = redis.call('ZRANGE', key('lanes'), cursor, cursor + LANES_AT_A_TIME - 1, 'WITHSCORES'), 0
for i = 1, #some, 2 do
  local lane = some[i]
  if redis.call('EXISTS', queues_key(lane)) == 1 then
    if not redis.call('ZSCORE', NEXT, lane) then release(lane, 1) end
  elseif redis.call('EXISTS', out_key(lane)) == 0 then
    gone = gone + forget_idle(lane, tonumber(some[i + 1]))
  end
end
local whole = #some == 2 * LANES_AT_A_TIME
redis.call('HSET', PUMP, 'audit', whole and cursor + LANES_AT_A_TIME - gone or 0)
feed(TRIES)
census.take()
return n
