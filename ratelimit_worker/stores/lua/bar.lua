-- What holds a call back, and until when: the next call of a lane, or one call in its place. It asks what release asks, by
-- the same functions, and writes nothing. O((queues + parents) · log waiting), and O(workers) when one of them has just died.
-- ARGV  now µs · lane · ref ('': the lane's next call)
-- returns  {calls that go before it (-1: it does not wait for its turn), bar …}, a bar being {kind, until µs, which, number}:
--          until: 0 nobody knows, -1 an event, which wakes the lane
--          'due' (its time) · 'claim' (which: the call whose answer it waits for) · 'turn' (number: calls before it) ·
--          'task' (no worker of its queue knows it; which: length of the queue's name:queue:task, as JSON has that) ·
--          'retries' (the retry budget; number: ten thousandths of a call that it holds) · 'suspect' · 'newer' (a newer
--          version's call) · 'gate' (which: refused, mode, shut) · 'pace' (which: the dimension) · 'quota' (which: requests or
--          tokens; number: of the day) · 'begins' | 'probes' | 'ramp' | 'flight' | 'concurrency' | 'lent' (number: as many are out) · 'slots' (which: the
--          queue; number: its slots, 0: nobody serves it) · 'parent' (which: its name; number: lanes that wait there; then,
--          fifth, a bar of its own: one of gate, pace, quota, probes, ramp, flight, concurrency, turn)
--          Of several the last to end counts. None: it goes when the lane is looked at, which is at once.
memo[LOOKS] = true
local DIMENSIONS, SHUT = {'requests', 'tokens', 'input_tokens', 'output_tokens'}, 2 ^ 53  -- SHUT_US of flow/tune.py
local lane, ref = ARGV[2], ARGV[3] ~= '' and ARGV[3]
local bars = {}
local function add(kind, until_us, which, number, parents)
  bars[#bars + 1] = {kind, int(until_us), which or '', int(number or 0), parents}
end
-- which bound of the law `width` is: the narrowest of them
local function law_of(L)
  local h = redis.call('HMGET', lane_key(L.name), 'probes', 'flight', 'ramp')
  for i, kind in ipairs({'probes', 'flight', 'ramp'}) do
    if tonumber(h[i] or '0') == L.width then return kind end
  end
  return DEGRADED[L.mode] and 'probes' or 'ramp'       -- an older worker's lane has `width` alone
end
-- whose gate it is: a mode's lies at most its gap ahead (see spend), or begins a pinned EMERGENCY, which has no gap at first
local function gate_of(L)
  if L.gate >= SHUT then return 'shut' end
  if L.width > 0 and L.gap > 0 and L.gate - now <= 1.2 * L.gap then return 'mode' end
  local pinned = DEGRADED[L.mode] and L.gap == 0 and (redis.call('HGET', lane_key(L.name), 'pin') or '') ~= ''
  return pinned and 'mode' or 'refused'
end
local function admits(L, cost, to)                     -- to: takes kind, until, which
  admits_in(L, cost, function(kind, us, i)
    if kind == 'gate' then
      to('gate', L.gate >= SHUT and 0 or now + us, gate_of(L))
    elseif kind == 'pace' then
      to('pace', us and now + us or 0, DIMENSIONS[i])
    else
      to('quota', now + us, DAY_FIELDS[i], L.quota[i])
    end
  end)
end
local function parents(L, cost)
  local waits = parent_waits(L, cost)
  for i = 1, waits and #waits or 0 do
    local P = L.parents[i]
    local row = redis.call('ZCARD', turns_key(P.name))
    local function to(kind, until_us, which, number)
      add('parent', until_us, P.name, row, {kind, int(until_us), which or '', int(number or 0)})
    end
    if waits[i] ~= 0 then
      local bound = crowded(P)
      if bound then to(bound == 'width' and law_of(P) or bound, -1, '', redis.call('ZCARD', out_key(P.name))) end
      admits(P, cost, to)
      if waits[i] == 'turn' then to('turn', -1, '', row) end
    end
  end
end
-- Calls of the lane that go before one with this tag, as head_of compares them: by class, each from its own place on.
local function before(L, queues, tag)
  local n = 0
  for _, q in ipairs(queues) do
    local k = wait_key(L.name, q)
    local behind = tag >= BEHIND and BEHIND or 0
    if behind > 0 then n = n + redis.call('ZCOUNT', k, '-inf', '(' .. int(BEHIND)) end
    for class = 0, RETRIES - 1 do
      local from = behind + class * BAND
      local most = math.min(BAND, tag - behind - AGES_S[class] * L.speed)
      if most > 0 then n = n + redis.call('ZCOUNT', k, int(from), '(' .. int(from + most)) end
    end
  end
  return n
end

-- The task of a call, as its JSON has it, when no worker of its queue knows it; and whether the call is parked, see crews.lua.
local function unknown_task(r, of)
  local task = crew.task_of(redis.call('HGET', call_key(of), 'm') or '')
  local _, here, _, older = slots(r[QUEUE])
  if not task or here == 0 then return nil end
  local _, known = crew.pick(r[QUEUE], task, 0)
  if not known and older == 0 then return #r[QUEUE] .. ':' .. r[QUEUE] .. ':' .. task end  -- else an older version's worker may
  return nil, redis.call('ZSCORE', crew.parked_key(r[QUEUE], task), of)
end

local L = load(lane)
local queues = redis.call('SMEMBERS', queues_key(lane))
local asked, r, queue, place = ref and record(ref), nil, nil, -1
if ref and not asked then return {-1} end
local own, out, _, bound = own_room(L)
local rooms = {}
local first, at_queue, _, tag = first_of(L, queues, rooms, out)
if first and probes.on(L) then
  first = probes.choose(L, queues, rooms, first, at_queue)
elseif first and tag < BEHIND then
  first = budget.first(L, queues, rooms) or first
end

if asked then
  queue = asked[QUEUE]
  local due = redis.call('ZSCORE', due_key(lane, queue), ref)
  local score = redis.call('ZSCORE', wait_key(lane, queue), ref)
  if due then
    local unknown, parked = unknown_task(asked, ref)
    if unknown then
      add('task', -1, unknown)
    elseif parked then                                 -- all slots of those that know it are taken
      add('slots', -1, queue, (select(2, slots(queue))))
    elseif tonumber(due) > now then
      add('due', tonumber(due))
    end
  elseif not score then                                -- it follows, has its answer, or is out
    if asked[CLAIM] and redis.call('ZSCORE', followers_key(asked[CLAIM]), ref) then
      add('claim', -1, redis.call('GET', claim_key(asked[CLAIM])) or '')
    end
    return {-1, unpack(bars)}
  else
    score = tonumber(score)
    local behind = score >= BEHIND and BEHIND or 0
    local class = math.floor((score - behind) / BAND)
    if not L.speed then head_of(L, queue) end          -- it keeps the lane's speed
    place = before(L, queues, behind + score - behind - class * BAND + AGES_S[class] * L.speed)
    if behind > 0 and ref ~= first then
      local left = budget.left(L)
      if left < 1 then add('retries', 0, '', left * 1e4) end
    end
    if ref == first then
      place = 0
    else
      if place == 0 and first then place = 1 end       -- an equal place, or a retry that its budget lets go first
      if place > 0 then add('turn', 0, '', place) end
    end
  end
end
-- Before its turn comes, the lane's next call is what holds the lane up.
if first then
  r = record(first)
else                                                   -- no queue has room: the first of those that wait, though
  local lowest, soonest, later
  for _, q in ipairs(queues) do
    local head, at = head_of(L, q)
    if head and (not lowest or at < lowest) then first, lowest = head, at end
    if not head then
      local e = redis.call('ZRANGE', due_key(lane, q), 0, 0, 'WITHSCORES')
      if e[2] and (not soonest or tonumber(e[2]) < soonest) then r, soonest, later = record(e[1]), tonumber(e[2]), e[1] end
    end
    if not asked and room(L, q, out) <= 0 then add('slots', -1, q, (select(2, slots(q)))) end
  end
  if first then
    r = record(first)
  elseif r and soonest > now and not asked then
    local unknown = unknown_task(r, later)
    if unknown then add('task', -1, unknown, 0) else add('due', soonest) end
  end
end
if asked and (ref == first or place < 0) then r = asked end
if asked and room(L, queue, out) <= 0 then add('slots', -1, queue, (select(2, slots(queue)))) end
local judged = asked or r                              -- what may not go for itself, whatever its lane may
if judged and (not asked or place >= 0) and (asked or first) then
  local unknown = unknown_task(judged, ref or first)
  if unknown then add('task', -1, unknown) end
end
if judged and judged[VERSION] > SCHEMA then add('newer', 0) end
if judged and judged[LOST] > 0 and not suspect.may_go(judged) then add('suspect', -1) end
if own <= 0 then
  local n = bound == 'begins' and redis.call('ZCOUNT', out_key(lane), 0, 0) or out
  add(bound == 'width' and law_of(L) or bound, -1, '', n)
end
local cost = r and r[COST] or {1, 0, 0, 0}             -- nothing waits: a call that came now
admits(L, cost, add)
if L.parents then parents(L, cost) end
-- A lane that stands in the row for a queue's slots is woken by the next that is free. What it may send ahead of that can have
-- grown since, with its parent's pace.
if #bars == 0 and first and place <= 0 and redis.call('ZSCORE', row_key(r[QUEUE]), lane) and vacant(r[QUEUE]) <= 0 then
  add('slots', -1, r[QUEUE], (select(2, slots(r[QUEUE]))))
end
return {place, unpack(bars)}
