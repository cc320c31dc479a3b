-- What holds a call back, and until when: the next call of a lane, or one particular call. It calls the same functions as a
-- release (choose, bar), and writes nothing. O((queues + parents) · log waiting), and O(workers) after one of them has died.
-- ARGV  now µs · lane · ref ('': the lane's next call)
-- returns  {calls that go before it (-1: it does not wait for its turn), bar …}; a bar is {kind, until µs, which, number}:
--          until: 0 unknown, -1 until an event, which wakes the lane
--          'due' (its time) · 'claim' (which: the call whose answer it waits for) · 'turn' (number: calls before it) ·
--          'task' (no worker of its queue knows it; which: length of the queue's name:queue:task's name in JSON) ·
--          'retries' (the retry budget; number: ten thousandths of a call that it holds) · 'suspect' · 'newer' (a newer
--          version's call) · 'gate' (which: refused, mode, shut) · 'pace' (which: the dimension) · 'quota' (which: requests or
--          tokens; number: the day's quota) · 'budget' (of money; which: its name; number: 1 of the day, 2 of the month) ·
--          'begins' | 'probes' | 'ramp' | 'flight' | 'concurrency' | 'lent' (number: calls
--          that are out) · 'slots' (which: the queue; number: its slots, 0: no worker reads it) · 'parent' (which: its name;
--          number: lanes that wait there; and a fifth part, the parent's own bar: gate, pace, quota, probes, ramp, flight,
--          concurrency or turn)
--          Of several bars, the one that ends last decides. No bar: the call is released at once.
local lane, ref = ARGV[2], ARGV[3] ~= '' and ARGV[3]
local told = {}
local function add(kind, until_us, which, number, parents)
  told[#told + 1] = {kind, int(until_us), which or '', int(number or 0), parents}
end
-- which of the law's bounds `at_once` is: the narrowest of the three
local function law_of(L)
  local h = redis.call('HMGET', lane_key(L.name), FIELD.PROBES, FIELD.FLIGHT, FIELD.RAMP)
  for i, kind in ipairs({'probes', 'flight', 'ramp'}) do
    if tonumber(h[i] or '0') == L.at_once then return kind end
  end
  return DEGRADED[L.mode] and 'probes' or 'ramp'       -- an older worker's lane has `at_once` alone
end
-- why the gate is closed. A mode sets it at most one gap ahead (see spend), or at the start of a pinned EMERGENCY, which has
-- no gap yet
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
-- the name of the task's row in crews.lua (see parked_key), if no living worker of the queue knows the task; else nil
local function unknown_task(queue, task)
  local _, here, _, older = slots(queue)
  if not task or here == 0 or older > 0 then return nil end  -- an older version's worker may
  local _, known = crew.pick(queue, task, 0)
  return not known and #queue .. ':' .. queue .. ':' .. task or nil
end
-- Translates a bar into the words of the header above. S, call: the step and call that met it
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
  elseif kind == 'budget' then
    add(kind, held.at, held.purse.name, held.which)
  elseif kind == 'suspect' or kind == 'newer' then
    add(kind, kind == 'newer' and 0 or -1)
  else
    add_budget(L, held, add)
  end
end
-- How many calls of the lane go before one with this tag, compared as head_of does: class by class.
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
-- The call that decides when its lane goes on: the next one; if no queue has room, the first that waits; if none waits for its
-- turn, the first that waits for its time. -> as choose returns it, with full: the queues without room, if no other queue has
-- any; nil: the lane has no call
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
    if room(S.L, q, S.own.out, false, 1) <= 0 then full[#full + 1] = q end
  end
  local call = best or later
  if not call then return nil end
  call.r, call.full = record(call.ref), full
  call.cost = call.r and call.r[COST]
  if best then call.task = task_of(call.ref) end
  return call
end
-- How many calls go before one that waits for its turn. first: the result of next_call
local function place_of(S, r, score, first)
  local L, goes = S.L, first and not first.full and first.ref  -- the call that goes next, if any may
  local behind = score >= BEHIND and BEHIND or 0
  local class = math.floor((score - behind) / BAND)
  if not L.speed then head_of(L, r[QUEUE]) end         -- which sets the lane's speed
  local place = before(L, S.queues, score - class * BAND + AGES_S[class] * L.speed)
  if goes == ref then return 0 end
  local left = behind > 0 and budget.left(L)
  if left and left < 1 then add('retries', 0, '', left * 1e4) end
  if place == 0 and goes then place = 1 end            -- the other has an equal tag, or is a retry that goes first
  if place > 0 then add('turn', 0, '', place) end
  return place
end
local function add_due(of, queue, due)                 -- it waits for a time; parked calls do too
  local task = task_of(of)
  local unknown = unknown_task(queue, task)
  if unknown then
    add('task', -1, unknown)
  elseif of == ref and task and select(2, slots(queue)) > 0 and redis.call('ZSCORE', crew.parked_key(queue, task), of) then
    add_slots(queue)                                   -- all slots of those that know it are taken
  elseif due > now then
    local r = record(of)
    local held = r and purse.bar(purse.of(load(lane), r))
    if not held or held.at ~= due then add('due', due) end  -- else bar tells what it waits for
  end
end
-- The bars that hold only the call that was asked for -> its place (-1: it does not wait for its turn); whether it waits for a
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
call.cost = call.cost or {1, 0, 0, 0}                  -- nothing waits: as for a call that would come now
if asked then
  local waits_here
  place, waits_here = add_own(S, asked, call)
  if not waits_here then return {-1, unpack(told)} end
  -- Until its turn comes, the lane's next call decides when the lane goes on. So that one's cost counts, but not the bars that
  -- hold that one alone.
  call = {ref = ref, r = asked, queue = asked[QUEUE], task = place >= 0 and task_of(ref), due = place < 0,
    cost = (place < 0 or call.ref == ref) and asked[COST] or call.cost}
elseif call.due then                                   -- none waits for its turn; queues without a slot are reported too
  for _, q in ipairs(call.full) do add_slots(q) end
  call.full = {}
  if call.r and call.due > now then add_due(call.ref, call.queue, call.due) end
end
bar(S, call, function(held) tell(S, call, held) end)
-- A lane in the row for a queue's slots is woken by the next free slot, and not before, even if by now it might release a call
-- ahead of that (since the pace of a parent has risen).
if #told == 0 and call.r and not call.due and place <= 0 and redis.call('ZSCORE', row_key(call.queue), lane)
  and vacant(call.queue) <= 0 then
  add_slots(call.queue)
end
return {place, unpack(told)}
