-- What all scripts begin with: the time, names of keys, the fields of a call's record. This text and those after it run
-- once, when the library is loaded; each script runs as a function after `start`. K (the key prefix), set by
-- scripts.py, and contract.lua stand above.

local now, ARGV                                        -- of the script that runs; µs
local asking                                           -- whether it only asks, so that nothing may be written
-- What the script has looked up already (a look-up costs 5 µs). Each entry belongs to the one part that also writes the key
-- behind it, and that part keeps it true: lease, unplanned (plan.lua), aside, slots, lent (workers.lua), busy, oncrew
-- (ledger.lua), again (suspects.lua), full (park.lua), waiting (waiting.lua: what this script has changed, by queue).
local memo
local function start(args, asks)                       -- args[1]: the time, µs; 0: this server's clock
  ARGV, now, asking, memo = args, tonumber(args[1]), asks,
    {slots = {}, busy = {}, oncrew = {}, full = {}, waiting = {}}
  if now == 0 then
    local t = redis.call('TIME')
    now = t[1] * 1000000 + t[2]
  end
end

local DAY_US, HOUR_US = 86400e6, 3600e6
local TTL_S = {LANE = 2592000, TENANT = 3600, PUBLISHED = 3600}  -- tables: Lua takes 200 local names
local STEP_US = 1e6                                    -- a clock that goes back by more than this was set back
local LOOK_S = 0.02                                    -- what a paced lane may earn while a message travels
local AGES_S = {[0] = 0, 60, 300}                      -- high, normal, low: seconds of service after which a call is high
local BAND = 1.4e15                                    -- tags of a class lie in a band of their own: years of service
local RETRIES = 3                                      -- bands of retries, in the same order, behind those of the classes;
local BEHIND = RETRIES * BAND                          -- a double holds every tag of the six exactly
local BANDS = {high = 0, normal = BAND, low = 2 * BAND}
local TAGS, WORTH = 1e4, {1, 1000, 1000, 1000}         -- tags of a call's worth of service; units that are worth a call
local CROWDED_US = 50e3                                -- gate after a refusal for too many calls at once
local TRIES = 8                                        -- lanes that are asked for one free slot
local SUPPLY = 8                                       -- calls that may lie ready for the next free slots
local SURPLUS = 8                                      -- calls without a permit that may lie ready beyond the slots
local FOLLOWERS = 1000                                 -- of one claim: settle gives each its answer in one step
local DEGRADED = {EMERGENCY = true, HALT = true}       -- modes in which calls are answered without their provider, if they may
local DEGRADED_AT_ONCE = 100                           -- waiting calls that are so answered in one step
-- A call's record, packed in field i of its hash: contract.lua has its places. Newer versions only append; what they change
-- otherwise is a new SCHEMA. CLAIM: its fingerprint; absent or false: it shares nothing. DEGRADES: what it may get in place of
-- its turn: a sum of the next two; absent or false: nothing. PARENTS: that it was charged to; absent or false: none, or it is
-- not out. CREW: to which it was released; absent: to none, it is not out, or an older version released it.
local STALE, SHED = 1, 2                               -- an answer that is past its time; an error
local NOTHING = {0, 0, 0, 0}                           -- a cost
local NONE, TAKEN, USED = 0, 1, 2                      -- PERMIT: none, taken from the bucket, used by a start

local function int(x) return string.format('%.0f', x) end
local function real(x) return string.format('%.17g', x) end
local function key(name) return K .. 'rlw:' .. name end
local function lane_key(lane) return key('lane:') .. lane end
local function wait_key(lane, queue) return key('wait:') .. #lane .. ':' .. lane .. ':' .. queue end
local function due_key(lane, queue) return key('due:') .. #lane .. ':' .. lane .. ':' .. queue end
local function queues_key(lane) return key('queues:') .. lane end
local function out_key(lane) return key('out:') .. lane end
local function row_key(queue) return key('hungry:') .. queue end
-- Workers of one queue that know the same tasks are a crew. Its name is a digest of the tasks, or ALL. It reads a ready list
-- of its own, which no stock worker reads. Calls out of a queue that have no crew: a version without crews released them,
-- into the list of the queue that stock workers read too.
local crew = {ALL = '*', PLAIN = '-', SUMS = key('crews'), PARKED = key('parked'), CROWDED = key('crowded'), LENT = key('lent')}  -- one table: Lua takes 200 local names
function crew.at(name, queue) return name .. ':' .. queue end
-- PLAIN: an in-process caller of a version without crews. Its queue is its own, so the plain list of that is safe.
function crew.ready_key(name, queue)
  return name == crew.PLAIN and K .. queue or key('ready:') .. crew.at(name, queue)
end
function crew.out_key(name, queue) return key('oncrew:') .. crew.at(name, queue) end
function crew.older_key(queue) return key('onqueue:') .. queue end
function crew.taken_key(r) return r[CREW] and crew.out_key(r[CREW], r[QUEUE]) or crew.older_key(r[QUEUE]) end
function crew.list_of(r) return r[CREW] and crew.ready_key(r[CREW], r[QUEUE]) or K .. r[QUEUE] end
local function call_key(ref) return key('call:') .. ref end
local function turns_key(parent) return key('turns:') .. parent end
local function shares_key(parent) return key('shares:') .. parent end
local function day_key(lane, day) return key('day:') .. int(day) .. ':' .. lane end
local function claim_key(fp) return key('claim:') .. fp end
local function followers_key(fp) return key('followers:') .. fp end
local function degradable_key(lane) return key('degradable:') .. lane end
local function cache_key(fp) return key('cache:') .. fp end
local LEDGER, ASIDE, NEXT, HUNGRY, FULL = key('ledger'), key('aside'), key('next'), key('hungry'), key('full')
local PUMP, EXPIRY, ANSWERED, SUSPECTS = key('pump'), key('expiry'), key('answered'), key('suspects')
local CACHE = {USED = key('cache:used'), ENDS = key('cache:ends'), SIZES = key('cache:sizes')}
local function count(name, by) return redis.call('HINCRBY', key('counters'), name, by or 1) end

-- A record that cannot be read is none, or whoever looks at its lane would fail, again and again: nil.
local record, record_and_message
do
  local RECORD = {'number', 'string', 'string', 'number', 'string', 'string', 'table', 'number', 'number', 'number', 'number',
    'number', 'number', 'number', 'table', 'string', 'number', 'number', 'number', 'number'}
  local function read_record(packed)
    if not packed then return nil end
    local ok, r = pcall(cmsgpack.unpack, packed)
    ok = ok and type(r) == 'table'
    if ok and type(r[VERSION]) == 'number' and r[VERSION] > SCHEMA then return r end
    for i = 1, #RECORD do ok = ok and type(r[i]) == RECORD[i] end
    for i = 1, N do ok = ok and type(r[COST][i]) == 'number' end
    ok = ok and type(r[TICKET][2]) == 'number'
    if ok then return r end
    if not asking then count('unreadable') end
  end
  function record(ref) return read_record(redis.call('HGET', call_key(ref), 'i')) end
  function record_and_message(ref)
    local h = redis.call('HMGET', call_key(ref), 'i', 'm')
    return read_record(h[1]), h[2]
  end
end
-- Which publication a reference is, or was while that is remembered, and its record if it still has one. HELD: of a call that
-- Redis has forgotten and a worker runs.
local memory = {HELD = 'held'}
function memory.of(ref)
  local r = record(ref)
  return r and r[PUB] or redis.call('GET', key('done:') .. ref), r
end
-- message: its text, with a place for the tag; given once, with a new record
local function keep(ref, r, message)
  if message then
    redis.call('HSET', call_key(ref), 'i', cmsgpack.pack(r), 'm', message)
  else
    redis.call('HSET', call_key(ref), 'i', cmsgpack.pack(r))
  end
end
-- A tag is the reference of a call and the number of its release; no number is given out twice, so that nobody who comes
-- late (a worker that was frozen, an ack from a life before) can touch what is another's by now.
local function split(tag)
  local ref, n = string.match(tag, '^(.*)%.(%d+)$')
  return ref or tag, tonumber(n) or 0
end
local function ttl_of(r) return math.ceil((r[DEADLINE] - now + DAY_US) / 1e6) end
local function released() return tonumber(redis.call('HGET', key('counters'), 'released') or '0') end
