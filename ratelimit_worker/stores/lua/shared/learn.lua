-- What is learned from an attempt: the row of sick answers, the gate, the observation for the tuner, the row for the tracking
-- database, and the record of the function.

local heed = {CROWDED_US = 50e3}                       -- gate after a refusal for too many calls at once
function heed.alarm(lane)                              -- the tuner looks at this lane before others, and at once
  redis.call('SADD', key('urgent'), lane)
  redis.call('PUBLISH', key('tune'), lane)
end
-- A good answer. plain: without headers that say more. r: the call's record, or nil
-- -> true if the tuner needs no observation: of a lane that is well it only needs the number of plain answers
function heed.good(lane, r, plain)
  local k = lane_key(lane)
  local h = redis.call('HMGET', k, FIELD.SICK_ROW, FIELD.REFUSALS, FIELD.MODE, FIELD.PROBES, FIELD.ANSWERED_AT, FIELD.SCHEMA,
    FIELD.GOODS, FIELD.TOOK)
  if not h[6] then return true end                     -- the lane was deleted meanwhile, and stays so
  local row, put = (h[1] or '0') ~= '0', {}            -- put: fields, to be written with one command
  local function write(field, value) put[#put + 1], put[#put + 2] = field, value end
  if row or math.abs(now - (tonumber(h[5] or '0') or 0)) >= KNOWN.ANSWERED_EVERY_US then
    write(FIELD.ANSWERED_AT, whole(now))
    write(FIELD.ANSWERED_SENT, whole(r and r[TICKET][2] or 0))
  end
  if row or (h[2] or '0') ~= '0' then write(FIELD.SICK_ROW, 0); write(FIELD.REFUSALS, 0); write(FIELD.WITNESS, '') end
  local counted = plain and not row and (h[3] or 'NORMAL') == 'NORMAL' and (h[4] or '0') == '0'
  if counted then
    write(FIELD.GOODS, whole((tonumber(h[7] or '0') or 0) + 1))
    if r and r[TICKET] then write(FIELD.TOOK, whole((tonumber(h[8] or '0') or 0) + math.max(0, now - r[TICKET][2]))) end
    if not h[7] then redis.call('SADD', key('seen'), lane) end
  end
  if #put > 0 then redis.call('HSET', k, unpack(put)) end
  return counted
end
-- A sick answer: one more in the lane's row. counts: it counts against the provider -> true if the lane was deleted meanwhile
function heed.sick(lane, r, counts)
  local k = lane_key(lane)
  local h = redis.call('HMGET', k, FIELD.SICK_ROW, FIELD.WITNESS, FIELD.SCHEMA)
  if not h[3] then return true end
  local row = (tonumber(h[1] or '0') or 0) + 1
  local by = h[2] or ''
  if r and counts then
    by = (by == '' or by == int(r[ACCEPTED])) and int(r[ACCEPTED]) or failing.SEVERAL
  end
  redis.call('HSET', k, FIELD.SICK_ROW, whole(row), FIELD.WITNESS, by)
  if row >= KNOWN.SICK_ROW then heed.alarm(lane) end
end
-- Lowers the levels after a refusal. It was refused in the lane's own budget, so parents and the day's quota get back what the
-- call took.
function heed.lower(L, r, dimension, gate_us)
  local k, cost = lane_key(L.name), r and r[COST] or NOTHING
  if r then refund_beside(L, cost, r[TICKET][2]) end
  for i = 1, N do
    if cost[i] > 0 then redis.call('HINCRBYFLOAT', k, FIELD.TURNED_BACK[i], cost[i]) end
    if L.p[i] then
      L.l[i] = math.max(L.l[i], math.min(L.d[i], L.l[i] + cost[i]))
      -- What may be left when the gate opens: with headers, enough for this call alone, until the next headers come; without,
      -- what is added behind the gate, and at least enough for this call if its refusal said how long to wait.
      local least = L.headers_govern and math.min(cost[i], L.d[i] - L.g[i]) + L.g[i]
        or gate_us > 0 and math.max(0, math.min(cost[i], L.d[i]) - L.p[i] * gate_us / 1e6) or 0
      if not dimension or dimension == i then L.l[i] = math.min(L.l[i], least) end
    end
  end
end
function heed.refused(lane, r, dimension, gate_us)
  local L, k = load(lane, r and r[PARENTS]), lane_key(lane)
  heed.lower(L, r, dimension, gate_us)
  -- Too many calls at once: the next may go as soon as one ends, and the tuner, which is woken, sets a bound. In a lane whose
  -- pace a person has set no such bound is learned, so the gate stays closed for as long as the provider asks.
  if dimension == 0 and not L.unlimited and redis.call('HGET', k, FIELD.ADAPTIVE) ~= '0' then
    gate_us = heed.CROWDED_US * (0.5 + (now % 1000) / 2000)
  else                                                 -- 0.05 s, doubled for each refusal in a row
    local row = tonumber(redis.call('HGET', k, FIELD.REFUSALS) or '0') or 0
    if L.gate <= now then row = row + 1; redis.call('HSET', k, FIELD.REFUSALS, whole(row)) end
    local backoff_us = 50000 * 2 ^ math.max(0, row - 1) * (0.5 + (now % 1000) / 2000)
    -- Without Retry-After at most 15 s. With one at least that long; it may be shorter than the real wait, so after some in a
    -- row longer, up to 1 s.
    gate_us = gate_us > 0 and math.max(gate_us, math.min(1e6, backoff_us / 8)) or math.min(15e6, backoff_us)
  end
  L.gate = math.max(L.gate, now + math.min(gate_us, DAY_US))
  save(L)
  heed.alarm(lane)
end
function heed.quota(lane)                              -- closes the gate, so released calls that have not begun go back
  if redis.call('HGET', lane_key(lane), FIELD.ESCALATES) == '0' then return end
  local L = bucket(lane)
  L.gate = math.max(L.gate, now + KNOWN.HALT_US)
  save(L)
  heed.alarm(lane)
end
-- told: the verdict: 'good', 'plain', 'refused' ('refused.2': in the second dimension; 'refused.0': for too many calls at once),
-- 'sick' ('sick.1': it does not count against the provider), 'quota' ('quota.1': others are answered), 'barred', 'other'.
-- docs/glossary.md says what they mean.
-- -> true if the tuner needs no observation
function heed.verdict(lane, told, gate_us, r)
  local verdict, dimension = string.match(told, '^(%a+)%.?(%d*)$')
  dimension = tonumber(dimension)
  if verdict == 'good' or verdict == 'plain' then return heed.good(lane, r, verdict == 'plain') end
  if verdict == 'sick' then return heed.sick(lane, r, dimension ~= failing.SUSPECT) end
  if verdict == 'refused' then heed.refused(lane, r, dimension, gate_us) end
  if verdict == 'quota' and dimension == failing.SUSPECT then heed.alarm(lane) end
  if verdict == 'quota' and not dimension then heed.quota(lane) end
end
-- Queues an observation for the tuner. seen: as Python has packed it, or ''
function heed.tell(lane, seen)
  if seen ~= '' then
    redis.call('RPUSH', key('seen:') .. lane, seen)
    redis.call('LTRIM', key('seen:') .. lane, -2000, -1)
    redis.call('EXPIRE', key('seen:') .. lane, 3600)
  end
  redis.call('SADD', key('seen'), lane)
end
function heed.book(outbox)
  if outbox ~= '' then redis.call('XADD', key('outbox'), 'MAXLEN', '~', 5000000, '*', 'a', outbox) end
end
-- The record of functions, by half minutes, for the bad-record rule of policy/retry.py. Fields: failed and answered, of the
-- whole lane; f:NAME and a:NAME, the same of a function. tried: {a function that failed, {function: answers}}, as Lesson.tried
-- packs it. Functions beyond the first MOST count for the whole lane only.
local fared = {SLOT_US = 30e6, SLOTS = 10, TTL_S = 330, MOST = 2000}
function fared.key(lane, slot) return key('fared:') .. int(slot) .. ':' .. lane end
function fared.fare(lane, tried)
  local k, t = fared.key(lane, math.floor(now / fared.SLOT_US)), cmsgpack.unpack(tried)
  local function add(sum, field, n)
    redis.call('HINCRBY', k, sum, n)
    if redis.call('HLEN', k) < fared.MOST or redis.call('HEXISTS', k, field) == 1 then
      redis.call('HINCRBY', k, field, n)
    end
  end
  add('failed', 'f:' .. t[1], 1)
  for name, n in pairs(t[2]) do add('answered', 'a:' .. name, n) end
  redis.call('EXPIRE', k, fared.TTL_S)
end
-- Does all of this for one attempt. The parts are independent of each other, and what the caller does next (keep the answer, give
-- the call back) does not depend on them: one that fails is only counted.
local function learn(lane, verdict, seen, outbox, gate_us, r, tried)
  if not pcall(heed.book, outbox) then count('unrecorded') end
  if tried and tried ~= '' and not pcall(fared.fare, lane, tried) then count('unheeded') end
  local heeded, in_full = pcall(heed.verdict, lane, verdict, gate_us or 0, r)
  if not heeded then count('unheeded') end
  if not (heeded and in_full) and not pcall(heed.tell, lane, seen) then count('untold') end
end
