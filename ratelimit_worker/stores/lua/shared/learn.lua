-- What is learned from an attempt: the row of failures, the gate, the tuner's observation, the outbox, how functions fare.

local heed = {}
function heed.alarm(lane)                              -- the tuner looks at this lane before others, and at once
  redis.call('SADD', key('urgent'), lane)
  redis.call('PUBLISH', key('tune'), lane)
end
-- The lane was answered. plain: no header told anything. r: the record of the call whose permit it was; nil: of none
-- returns  true when that is all: of a lane that is well, the tuner need only know how many plain answers it had
function heed.good(lane, r, plain)
  local k = lane_key(lane)
  local h = redis.call('HMGET', k, FIELD.SICK_ROW, FIELD.REFUSALS, FIELD.MODE, FIELD.PROBES, FIELD.ANSWERED_AT, FIELD.SCHEMA,
    FIELD.GOODS, FIELD.TOOK)
  if not h[6] then return true end                     -- the lane has ended meanwhile, and must not come back as a stump
  local row, put = (h[1] or '0') ~= '0', {}            -- put: one write for all, since each command has its price
  local function write(field, value) put[#put + 1], put[#put + 2] = field, value end
  if row or math.abs(now - (tonumber(h[5] or '0') or 0)) >= KNOWN.ANSWERED_EVERY_US then
    write(FIELD.ANSWERED_AT, int(now))
    write(FIELD.ANSWERED_SENT, int(r and r[TICKET][2] or 0))
  end
  if row or (h[2] or '0') ~= '0' then write(FIELD.SICK_ROW, 0); write(FIELD.REFUSALS, 0); write(FIELD.WITNESS, '') end
  local counted = plain and not row and (h[3] or 'NORMAL') == 'NORMAL' and (h[4] or '0') == '0'
  if counted then
    write(FIELD.GOODS, int((tonumber(h[7] or '0') or 0) + 1))
    if r and r[TICKET] then write(FIELD.TOOK, int((tonumber(h[8] or '0') or 0) + math.max(0, now - r[TICKET][2]))) end
    if not h[7] then redis.call('SADD', key('seen'), lane) end
  end
  if #put > 0 then redis.call('HSET', k, unpack(put)) end
  return counted
end
-- A sick answer, one more in the lane's row. counts: its call is a witness -> true when the lane has ended meanwhile
function heed.sick(lane, r, counts)
  local k = lane_key(lane)
  local h = redis.call('HMGET', k, FIELD.SICK_ROW, FIELD.WITNESS, FIELD.SCHEMA)
  if not h[3] then return true end
  local row = (tonumber(h[1] or '0') or 0) + 1
  local by = h[2] or ''
  if r and counts then
    by = (by == '' or by == int(r[ACCEPTED])) and int(r[ACCEPTED]) or failing.SEVERAL
  end
  redis.call('HSET', k, FIELD.SICK_ROW, int(row), FIELD.WITNESS, by)
  if row >= KNOWN.SICK_ROW then heed.alarm(lane) end
end
-- What a refusal leaves of the levels. The refusal is the lane's own: its parents and the day get back what the call took.
function heed.lower(L, r, dimension, gate_us)
  local k, cost = lane_key(L.name), r and r[COST] or NOTHING
  if r then refund_beside(L, cost, r[TICKET][2]) end
  for i = 1, N do
    if cost[i] > 0 then redis.call('HINCRBYFLOAT', k, FIELD.TURNED_BACK[i], cost[i]) end
    if L.p[i] then
      L.l[i] = math.max(L.l[i], math.min(L.d[i], L.l[i] + cost[i]))
      -- After the gate: with headers, this call alone, and then what they say; without, what the pause has earned, and
      -- at least this call where its wait was told.
      local least = L.headers_govern and math.min(cost[i], L.d[i] - L.g[i]) + L.g[i]
        or gate_us > 0 and math.max(0, math.min(cost[i], L.d[i]) - L.p[i] * gate_us / 1e6) or 0
      if not dimension or dimension == i then L.l[i] = math.min(L.l[i], least) end
    end
  end
end
function heed.refused(lane, r, dimension, gate_us)
  local L, k = load(lane, r and r[PARENTS]), lane_key(lane)
  heed.lower(L, r, dimension, gate_us)
  -- Too many at once: a place is free as soon as a call ends, and the tuner, which is woken, knows how many there are. A
  -- lane whose pace a person has set learns no such bound, and keeps away for as long as it is told.
  if dimension == 0 and not L.unlimited and redis.call('HGET', k, FIELD.ADAPTIVE) ~= '0' then
    gate_us = CROWDED_US * (0.5 + (now % 1000) / 2000)
  elseif gate_us <= 0 then                             -- no Retry-After: 0.05·2^k s for the k-th in a row, at most 15 s
    local row = tonumber(redis.call('HGET', k, FIELD.REFUSALS) or '0') or 0
    if L.gate <= now then row = row + 1; redis.call('HSET', k, FIELD.REFUSALS, int(row)) end
    gate_us = math.min(15e6, 50000 * 2 ^ math.max(0, row - 1)) * (0.5 + (now % 1000) / 2000)
  end
  L.gate = math.max(L.gate, now + math.min(gate_us, DAY_US))
  save(L)
  heed.alarm(lane)
end
function heed.quota(lane)                              -- what is released and has not begun goes back
  if redis.call('HGET', lane_key(lane), FIELD.ESCALATES) == '0' then return end
  local L = bucket(lane)
  L.gate = math.max(L.gate, now + KNOWN.HALT_US)
  save(L)
  heed.alarm(lane)
end
-- verdict: 'good' answered, 'plain' answered and no header told anything, 'refused' 429 ('refused.2': in the second dimension;
-- 'refused.0': for calls at once, in none), 'sick' ('sick.1': to a call that is no witness), 'quota' nothing is left to spend,
-- 'barred' the key was not accepted, 'other'
-- returns  true when the tuner need not hear of it
function heed.verdict(lane, told, gate_us, r)
  local verdict, dimension = string.match(told, '^(%a+)%.?(%d*)$')
  dimension = tonumber(dimension)
  if verdict == 'good' or verdict == 'plain' then return heed.good(lane, r, verdict == 'plain') end
  if verdict == 'sick' then return heed.sick(lane, r, dimension ~= failing.SUSPECT) end
  if verdict == 'refused' then heed.refused(lane, r, dimension, gate_us) end
  if verdict == 'quota' then heed.quota(lane) end
end
-- seen: the tuner's observation, packed by Python, or ''
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
-- How functions fare, by half minutes, for the bad-record rule of policy/retry.py: failed and answered of the lane, f:NAME
-- and a:NAME of its functions. tried: as tally.tried packs it. Names beyond the most count for the lane alone.
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
-- The outcome of an attempt is recorded, heeded and told. The parts do not hang together, and what the caller does next
-- (keep the answer, give the call back) does not hang on them: one that fails is counted.
local function learn(lane, verdict, seen, outbox, gate_us, r, tried)
  if not pcall(heed.book, outbox) then count('unrecorded') end
  if tried and tried ~= '' and not pcall(fared.fare, lane, tried) then count('unheeded') end
  local heeded, in_full = pcall(heed.verdict, lane, verdict, gate_us or 0, r)
  if not heeded then count('unheeded') end
  if not (heeded and in_full) and not pcall(heed.tell, lane, seen) then count('untold') end
end
