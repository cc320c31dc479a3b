-- What all scripts begin with: the time, names of keys, reading and writing a call's record. This text and those after it run
-- once, when the library is loaded; each script runs as a function after `start`. K (the key prefix), set by
-- scripts.py, and contract.lua come before.

local now, ARGV                                        -- of the running script: its time (µs) and its arguments
local asking                                           -- whether it is a read-only script, which must not write
-- What the script has looked up already, since a look-up costs 5 µs. Each entry is kept up to date by the one file that writes
-- the key behind it: lease, unplanned (plan.lua), aside, slots, lent (workers.lua), busy, oncrew (ledger.lua), again
-- (suspects.lua), full (park.lua), waiting (waiting.lua: changes by this script, by queue), budgets, purses (purse.lua). Two are
-- of one step alone: batch (batch.lua), sole (release.lua: the row in which the lane that is asked is the only one).
local memo
local start
do
  local by = {slots = {}, busy = {}, oncrew = {}, full = {}, waiting = {}, purses = {}}  -- most scripts leave some of them empty
  local function empty(name)
    if next(by[name]) ~= nil then by[name] = {} end
    return by[name]
  end
  function start(args, asks)                           -- args[1]: the time, µs; 0: this server's clock
    ARGV, now, asking = args, tonumber(args[1]), asks
    memo = {slots = empty('slots'), busy = empty('busy'), oncrew = empty('oncrew'), full = empty('full'),
      waiting = empty('waiting'), purses = empty('purses')}
    if now == 0 then
      local t = redis.call('TIME')
      now = t[1] * 1000000 + t[2]
    end
  end
end

local DAY_US, HOUR_US = 86400e6, 3600e6
local TTL_S = {LANE = 2592000, TENANT = 3600, PUBLISHED = 3600}  -- tables: Lua takes 200 local names
local STEP_US = 1e6                                    -- a clock that goes back by more than this was set back by somebody
local LOOK_S = 0.02                                    -- how long a message may travel: calls are released that much ahead
local AGES_S = {[0] = 0, 60, 300}                      -- high, normal, low: seconds of service until a call counts as high
local BAND = 1.4e15                                    -- each class has a band of tags, wide enough for years of service
local RETRIES = 3                                      -- number of classes; retries have bands behind these, one for each class.
local BEHIND = RETRIES * BAND                          -- start of those bands. A double holds every tag of the six exactly
local BANDS = {high = 0, normal = BAND, low = 2 * BAND}
local TAGS, WORTH = 1e4, {1, 1000, 1000, 1000}         -- tags that one call counts for; units that count as a call
local TRIES = 8                                        -- most lanes that are asked to use one free slot
local SUPPLY = 8                                       -- most calls of lanes without a pace that are ready beyond the slots
local SURPLUS = 8                                      -- most calls without a permit that are ready beyond the slots
-- Modes in which calls that allow it get a kept answer or an error; AT_ONCE: most waiting calls that get one in one step.
local DEGRADED = {EMERGENCY = true, HALT = true, AT_ONCE = 100}
local NOTHING = {0, 0, 0, 0}                           -- a cost

local function int(x) return string.format('%.0f', x) end  -- as text, for names and for comparing with stored numbers
-- As an argument of a command or a part of an answer. Numbers are given to the server as they are, fractions too: it writes
-- them exactly, and whole ones in a tenth of the time that string.format takes.
local function whole(x) return x % 1 == 0 and x or math.floor(x + 0.5) end
local key
do
  local known = {}                                     -- the names are written in the scripts, so they are few
  function key(name)
    local k = known[name]
    if not k then
      k = K .. 'rlw:' .. name
      known[name] = k
    end
    return k
  end
end
local function lane_key(lane) return key('lane:') .. lane end
local function wait_key(lane, queue) return key('wait:') .. #lane .. ':' .. lane .. ':' .. queue end
local function due_key(lane, queue) return key('due:') .. #lane .. ':' .. lane .. ':' .. queue end
local function queues_key(lane) return key('queues:') .. lane end
local function out_key(lane) return key('out:') .. lane end
local function row_key(queue) return key('hungry:') .. queue end
-- Workers of one queue that know the same tasks are a crew. Its name is a digest of the tasks, or ALL. It reads a ready list of
-- its own, which no stock worker reads. A released call without a crew was released by a version that had none, into the
-- queue's plain list, which stock workers read too.
local crew = {ALL = '*', PLAIN = '-', SUMS = key('crews'), PARKED = key('parked'), CROWDED = key('crowded'), LENT = key('lent')}  -- one table: Lua takes 200 local names
function crew.at(name, queue) return name .. ':' .. queue end
-- PLAIN: an in-process caller of a version without crews. Nobody else reads its queue, so its plain list is safe.
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

-- A record that cannot be read counts as missing (nil): else every script that looks at its lane would fail, again and again.
local record, record_and_message, keep
do
  local LEAST = -1 / 0
  -- Raises an error unless each place has a value of its type: a comparison does that at a tenth of what `type` costs, and
  -- nearly every script reads a record. No text is before '', and no number below LEAST, so all of them are compared.
  local function unpacked(packed)
    local r = cmsgpack.unpack(packed)
    if r[VERSION] > SCHEMA then return r end
    local odd = r[LANE] < '' or r[QUEUE] < '' or r[CLASS] < '' or r[TENANT] < '' or r[PUB] < '' or r[SCORE] < LEAST
      or r[ACCEPTED] < LEAST or r[DEADLINE] < LEAST or r[RELEASE] < LEAST or r[ATTEMPTS] < LEAST or r[LOST] < LEAST
      or r[PERMIT] < LEAST or r[RESTORED] < LEAST or r[TICKET][2] < LEAST or r[SINCE] < LEAST or r[NUMBER] < LEAST
      or r[WEIGHT] < LEAST or r[BORN] < LEAST
    for i = 1, N do odd = odd or r[COST][i] < LEAST end
    return r
  end
  -- Records that were packed or unpacked last, by their text, of which these are the only owners: a call's record is read
  -- again within milliseconds, and to copy it costs a tenth of unpacking. Two halves, the older of which is dropped when the
  -- other one is full. Nothing changes a table within a record: it gets another one.
  local KEPT, MOST_PLACES, newer, older, n = 64, 30, {}, {}, 0
  local function remember(packed, r)
    if r[MOST_PLACES + 1] ~= nil then return end
    if n >= KEPT then newer, older, n = {}, newer, 0 end
    newer[packed], n = {unpack(r, 1, MOST_PLACES)}, n + 1
  end
  local function read_record(packed)
    if not packed then return nil end
    local known = newer[packed] or older[packed]
    if known then return {unpack(known, 1, MOST_PLACES)} end
    local ok, r = pcall(unpacked, packed)
    if ok then
      remember(packed, r)
      return r
    end
    if not asking then count('unreadable') end
  end
  function record(ref) return read_record(redis.call('HGET', call_key(ref), 'i')) end
  function record_and_message(ref)
    local h = redis.call('HMGET', call_key(ref), 'i', 'm')
    return read_record(h[1]), h[2]
  end
  -- Stores a record. message: the call's text, with a place for the tag; given only with a new record
  function keep(ref, r, message)
    local packed = cmsgpack.pack(r)
    if message then
      redis.call('HSET', call_key(ref), 'i', packed, 'm', message)
    else
      redis.call('HSET', call_key(ref), 'i', packed)
    end
    remember(packed, r)
  end
end
-- The publication under a reference, also for an hour after the call has ended, and its record if there still is one. HELD: Redis
-- has forgotten the call, but a worker runs it.
local memory = {HELD = 'held'}
function memory.of(ref)
  local r = record(ref)
  return r and r[PUB] or redis.call('GET', key('done:') .. ref), r
end
-- A tag is the reference of a call and the number of its release. No number is given out twice, so a worker that comes late (it
-- was frozen, or acknowledges an earlier delivery) cannot touch a call that is another worker's by now.
local function split(tag)
  local ref, n = string.match(tag, '^(.*)%.(%d+)$')
  return ref or tag, tonumber(n) or 0
end
local function ttl_of(r) return math.ceil((r[DEADLINE] - now + DAY_US) / 1e6) end
