-- What holds a call back, and until when: the next call of a lane, or one call in its place. It asks what release asks, of
-- the same functions (choose, bar), and writes nothing. O((queues + parents) · log waiting), and O(workers) when one of them has just died.
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
local lane, ref = ARGV[2], ARGV[3] ~= '' and ARGV[3]
local told = {}
local function add(kind, until_us, which, number, parents)
  told[#told + 1] = {kind, int(until_us), which or '', int(number or 0), parents}
end
-- which bound of the law `at_once` is: the narrowest of them
local function law_of(L)
  local h = redis.call('HMGET', lane_key(L.name), FIELD.PROBES, FIELD.FLIGHT, FIELD.RAMP)
  for i, kind in ipairs({'probes', 'flight', 'ramp'}) do
    if tonumber(h[i] or '0') == L.at_once then return kind end
  end
  return DEGRADED[L.mode] and 'probes' or 'ramp'       -- an older worker's lane has `at_once` alone
end
-- whose gate it is: a mode's lies at most its gap ahead (see spend), or begins a pinned EMERGENCY, which has no gap at first
local function gate_of(L)
  if L.gate >= KNOWN.SHUT_US then return 'shut' end
  if L.at_once > 0 and L.gap > 0 and L.gate - now <= 1.2 * L.gap then return 'mode' end
  local pinned = DEGRADED[L.mode] and L.gap == 0 and (redis.call('HGET', lane_key(L.name), FIELD.PIN) or '') ~= ''
  return pinned and 'mode' or 'refused'
end
local function add_slots(queue) add('slots', -1, queue, (select(2, slots(queue)))) end
local function add_budget(L, held, to)                 -- gate, pace or quota; to: takes kind, until, which, number
  if held.kind == 'gate' then
    to('gate', L.gate >= KNOWN.SHUT_US and 0 or now + held.wait_us, gate_of(L))
  elseif held.kind == 'pace' then
    to('pace', held.wait_us and now + held.wait_us or 0, DIMENSIONS[held.which])
  else
    to('quota', now + held.wait_us, DAY.FIELDS[held.which], L.quota[held.which])
  end
end
local function add_parents(L, held)
  for i, P in ipairs(L.parents) do
    local standing = redis.call('ZCARD', turns_key(P.name))
    local function to(kind, until_us, which, number)
      add('parent', until_us, P.name, standing, {kind, int(until_us), which or '', int(number or 0)})
    end
    if held.waits[i] ~= 0 then
      local bound = turns.crowded(P)
      if bound then to(bound == 'at_once' and law_of(P) or bound, -1, '', redis.call('ZCARD', out_key(P.name))) end
      bars.budget(P, held.cost, function(one) add_budget(P, one, to) end)
      if held.waits[i] == 'turn' then to('turn', -1, '', standing) end
    end
  end
end
local function unknown_task(queue, task)               -- none of the living workers of the queue knows it: its row in crews.lua
  local _, here, _, older = slots(queue)
  if not task or here == 0 or older > 0 then return nil end  -- an older version's worker may
  local _, known = crew.pick(queue, task, 0)
  return not known and #queue .. ':' .. queue .. ':' .. task or nil
end
-- A bar in the words of the contract above. S, call: of which it was found
local function tell(S, call, held)
  local L, kind = S.L, held.kind
  if held.event then
    local n = kind == 'begins' and redis.call('ZCOUNT', out_key(lane), 0, 0) or S.own.out
    add(kind == 'at_once' and law_of(L) or kind, -1, '', n)
  elseif kind == 'slots' then
    for _, q in ipairs(call.full or {call.queue}) do add_slots(q) end
  elseif kind == 'task' then
    local unknown = unknown_task(call.queue, call.task)
    if unknown then add('task', -1, unknown) end
  elseif kind == 'parent' then
    add_parents(L, held)
  elseif kind == 'suspect' or kind == 'newer' then
    add(kind, kind == 'newer' and 0 or -1)
  else
    add_budget(L, held, add)
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
local function task_of(of) return crew.task_of(redis.call('HGET', call_key(of), 'm') or '') end
-- The call that holds its lane up: the next one; where no queue has room, the first that waits; else the first that waits for
-- its time. -> as choose has it, and full: the queues without room, where no other has any; nil: none is there
local function next_call(S)
  local first = choose(S)
  if first and first.ref then return first end
  local best, later, full = nil, nil, {}
  for _, q in ipairs(S.queues) do
    local head, tag = head_of(S.L, q)
    if head and (not best or tag < best.tag) then best = {ref = head, tag = tag, queue = q} end
    if not head then
      local e = redis.call('ZRANGE', due_key(lane, q), 0, 0, 'WITHSCORES')
      if e[2] and (not later or tonumber(e[2]) < later.due) then later = {ref = e[1], due = tonumber(e[2]), queue = q} end
    end
    if room(S.L, q, S.own.out) <= 0 then full[#full + 1] = q end
  end
  local call = best or later
  if not call then return nil end
  call.r, call.full = record(call.ref), full
  call.cost = call.r and call.r[COST]
  if best then call.task = task_of(call.ref) end
  return call
end
-- Where a call stands that waits for its turn: how many go before it. first: as next_call has it
local function place_of(S, r, score, first)
  local L, goes = S.L, first and not first.full and first.ref  -- which goes next, if any may
  local behind = score >= BEHIND and BEHIND or 0
  local class = math.floor((score - behind) / BAND)
  if not L.speed then head_of(L, r[QUEUE]) end         -- it keeps the lane's speed
  local place = before(L, S.queues, score - class * BAND + AGES_S[class] * L.speed)
  if goes == ref then return 0 end
  local left = behind > 0 and budget.left(L)
  if left and left < 1 then add('retries', 0, '', left * 1e4) end
  if place == 0 and goes then place = 1 end            -- an equal place, or a retry that its budget lets go first
  if place > 0 then add('turn', 0, '', place) end
  return place
end
local function add_due(of, queue, due)                 -- it waits for a time, or is parked as if it did
  local task = task_of(of)
  local unknown = unknown_task(queue, task)
  if unknown then
    add('task', -1, unknown)
  elseif of == ref and task and select(2, slots(queue)) > 0 and redis.call('ZSCORE', crew.parked_key(queue, task), of) then
    add_slots(queue)                                   -- all slots of those that know it are taken
  elseif due > now then
    add('due', due)
  end
end
-- What holds the call that was asked for, and no other -> its place (-1: it does not wait for its turn); whether it waits for a
-- permit at all
local function add_own(S, r, first)
  local due = redis.call('ZSCORE', due_key(lane, r[QUEUE]), ref)
  if due then
    add_due(ref, r[QUEUE], tonumber(due))
    return -1, true
  end
  local score = redis.call('ZSCORE', wait_key(lane, r[QUEUE]), ref)
  if score then return place_of(S, r, tonumber(score), first), true end
  if r[CLAIM] and redis.call('ZSCORE', followers_key(r[CLAIM]), ref) then
    add('claim', -1, redis.call('GET', claim_key(r[CLAIM])) or '')
  end
  return -1, false                                     -- it follows, has its answer, or is out
end

local asked = ref and record(ref)
if ref and not asked then return {-1} end
local S, place = step.of(load(lane), redis.call('SMEMBERS', queues_key(lane)), math.huge), -1
local call = next_call(S) or {}
call.cost = call.cost or {1, 0, 0, 0}                  -- nothing waits: a call that came now
if asked then
  local waits_here
  place, waits_here = add_own(S, asked, call)
  if not waits_here then return {-1, unpack(told)} end
  -- Before its turn comes, the lane's next call is what holds the lane up: its cost counts, though not what is its own.
  call = {ref = ref, r = asked, queue = asked[QUEUE], task = place >= 0 and task_of(ref), due = place < 0,
    cost = (place < 0 or call.ref == ref) and asked[COST] or call.cost}
elseif call.due then                                   -- none waits for its turn: what the others will lack is told with it
  for _, q in ipairs(call.full) do add_slots(q) end
  call.full = {}
  if call.r and call.due > now then add_due(call.ref, call.queue, call.due) end
end
bar(S, call, function(held) tell(S, call, held) end)
-- A lane that stands in the row for a queue's slots is woken by the next that is free. What it may send ahead of that can have
-- grown since, with its parent's pace.
if #told == 0 and call.r and not call.due and place <= 0 and redis.call('ZSCORE', row_key(call.queue), lane)
  and vacant(call.queue) <= 0 then
  add_slots(call.queue)
end
return {place, unpack(told)}
