-- Write set-points of a lane; they hold for the next permit. O(fields).
-- ARGV  now µs · lane · revision of the lane that the writer has read ('': whatever it is) · 1: a person sets limits, so the
--       lane has a new revision (0: no) · field · value … ('': delete the field). a1..a4 is no field: an anchor, from which
--       the level follows as anchor − units sent in all and not refused, so that what went out meanwhile is not forgotten.
--       m1..m4: the same, but it only lowers the level
-- returns  released at once | -1 the lane has another revision by now: nothing was written
local lane = ARGV[2]
if ARGV[3] ~= '' and (redis.call('HGET', lane_key(lane), 'rev') or '0') ~= ARGV[3] then return -1 end
if ARGV[4] == '1' then redis.call('HINCRBY', lane_key(lane), 'rev', 1) end
local before = load(lane)
save(before)                                           -- what was earned at the old pace stays earned
local anchors = {}
for i = 5, #ARGV - 1, 2 do
  local kind, d = string.match(ARGV[i], '^([am])(%d)$')
  if d then
    anchors[tonumber(d)] = {tonumber(ARGV[i + 1]), kind == 'm'}
  elseif ARGV[i + 1] == '' then
    redis.call('HDEL', lane_key(lane), ARGV[i])
  else
    redis.call('HSET', lane_key(lane), ARGV[i], ARGV[i + 1])
  end
end
local L = load(lane)                                   -- a new depth bounds the level
for d = 1, N do                                        -- a debt is time: at a tenth of the pace it would last ten times as long
  if L.p[d] and L.p[d] > 0 and (before.p[d] or 0) > 0 and L.l[d] < 0 then L.l[d] = L.l[d] * L.p[d] / before.p[d] end
end
for d, anchor in pairs(anchors) do
  if L.p[d] then
    local refused = tonumber(redis.call('HGET', lane_key(lane), 'x' .. d) or '0')
    L.l[d] = math.min(anchor[2] and L.l[d] or L.d[d], anchor[1] - L.c[d] + refused)
  end
end
save(L)
if next(anchors) == nil and redis.call('EXISTS', queues_key(lane), out_key(lane), turns_key(lane)) == 0 then
  return 0                                             -- nothing waits in it, nor for it
end
wake(lane)
return release(lane, 1000)
