-- A worker was handed a call whose task it does not know: the call goes back, at no permit and no try. If an older version had
-- released it, to any worker of the queue, it goes to its own place; if it was released to this worker's crew, which should
-- know the task, it comes back a while later. O(log waiting).
-- ARGV  now µs · tag
-- returns  1 it went back | 2 its deadline has passed and no worker knows its task: end it here | 0 no call is out under this tag
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
