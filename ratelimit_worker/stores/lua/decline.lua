-- A worker was handed a call whose task it does not know: the call goes back, and has used neither a permit nor a try. To its
-- own place when an older version had released it to whoever came by; after a while when the worker's crew should know it.
-- O(log waiting).
-- ARGV  now µs · tag
-- returns  1 it went back | 2 its deadline has passed, and nobody knows its task: end it here | 0 the tag is no call that is out
local tag = ARGV[2]
local ref = split(tag)
local r = redis.call('ZSCORE', LEDGER, tag) and record(ref)
if not r or r[VERSION] > SCHEMA then return 0 end
if now >= r[DEADLINE] then
  local _, known = crew.pick(r[QUEUE], crew.task_of(redis.call('HGET', call_key(ref), 'm') or ''), SURPLUS)
  if not known then return 2 end
end
go_back(ref, tag, r, r[CREW] and now + crew.FULL_US or 0)
release(r[LANE], 1)
feed(1)
return 1
