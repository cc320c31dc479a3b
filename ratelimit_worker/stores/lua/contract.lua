-- What scripts and Python share. Written by ratelimit_worker/contracts/lua.py: make changes there.

local SCHEMA, N = 1, 4
local DIMENSIONS = {'requests', 'tokens', 'input_tokens', 'output_tokens'}
-- the fields of a lane's hash; by number where there is one a dimension. ANCHOR and ANCHOR_LOWERS
-- are never stored: they are arguments of setpoints.lua
local FIELD = {SCHEMA = 'schema', RPM = 'rpm', TPM = 'tpm', CONCURRENCY = 'cap', ADAPTIVE = 'adaptive',
  SHARED = 'shared', BOUNDS = 'bounds', BASIC = 'basic', CONFIGURED = 'configured', REVISION = 'rev',
  PACE = {'p1', 'p2', 'p3', 'p4'}, DEPTH = {'d1', 'd2', 'd3', 'd4'}, GUARD = {'g1', 'g2', 'g3', 'g4'},
  UNPACED = 'unlimited', HEADERS_GOVERN = 'told', MODE = 'mode', PIN = 'pin', ESCALATES = 'escalates',
  AT_ONCE = 'width', PROBES = 'probes', RAMP = 'ramp', FLIGHT = 'flight', GAP = 'gap', SICK_SHARE = 'sick_share',
  GATE = 'gate', AT = 'ts', LEVEL = {'l1', 'l2', 'l3', 'l4'}, BEYOND = {'o1', 'o2', 'o3', 'o4'},
  SENT = {'c1', 'c2', 'c3', 'c4'}, TURNED_BACK = {'x1', 'x2', 'x3', 'x4'}, SEQ = 'seq', STARTS = 'full_at',
  SICK_ROW = 'sick', GOODS = 'goods', TOOK = 'took', START = 'v', TURN = 'turn', REFUSALS = 'refusals',
  ANSWERED_AT = 'good_at', ANSWERED_SENT = 'good_sent', WITNESS = 'witness', GAVE_BACK_AT = 'gave',
  DOUBT_UNTIL = 'doubt', DOUBT_LASTS = 'doubted', RETRIES_LEFT = 'rb', RETRIES_SEQ = 'rs', RETRIES_AT = 'rt',
  LAW = 'law', HEALTH = 'health', GIVEN_BACK = 'resumed', ANCHOR = {'a1', 'a2', 'a3', 'a4'},
  ANCHOR_LOWERS = {'m1', 'm2', 'm3', 'm4'}}
-- numbers that Python uses too
local KNOWN = {SICK_ROW = 5, HALT_US = 2000000, ANSWERED_EVERY_US = 100000, RETRY_SHARE = 0.1,
  RETRIES_PER_US = 1.6666666666666665e-07, MANY = 1000000, SHUT_US = 9007199254740992, REFS = 9, LISTED_US = 60000000,
  ENTRY_BYTES = 1100, WORTH_SCALE = 1000, USUAL_NANOUSD = 1000000, RENEW_AGAIN_US = 30000000, REUSE_KEPT_S = 172800,
  REUSE_MOST = 2000}
-- positions in the record of a call (contracts/call.py says what stands there), and in its claim
local VERSION, LANE, QUEUE, SCORE, CLASS, TENANT, COST, ACCEPTED, DEADLINE, RELEASE, ATTEMPTS, LOST, PERMIT, RESTORED,
  TICKET, PUB, SINCE, NUMBER, WEIGHT, BORN, CLAIM, DEGRADES, PARENTS, CREW, MONEY, RESERVED
  = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26
local ASKED = {FP = 1, TTL_MS = 2, JOIN = 3, AT_ONCE = 4, AGAIN = 5, ENTRIES = 6, BYTES = 7, CONTEXT = 8, TAGS = 9,
  FUNC = 10, STALE_MS = 11, ANSWER = 12, REFRESH = 13, UNKEPT = 14, HEIRS = 15, REVALIDATE_MS = 16}
-- codes in the places PERMIT and DEGRADES of a record
local NONE, TAKEN, USED = 0, 1, 2
local STALE, SHED = 1, 2
-- sums of what answers that were used again have saved
local REUSE = {HITS = 'hits', JOINED = 'joined', STALE = 'stale', MISSES = 'misses', REFRESHED = 'refreshed',
  BYTES = 'bytes', INPUT_TOKENS = 'input_tokens', OUTPUT_TOKENS = 'output_tokens', HITS_NANOUSD = 'hits_nanousd',
  JOINED_NANOUSD = 'joined_nanousd', STALE_NANOUSD = 'stale_nanousd', EVICTED = 'evicted',
  EVICTED_BYTES = 'evicted_bytes'}
