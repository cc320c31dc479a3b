-- Write set-points of a lane; they hold for the next permit. O(fields).
-- ARGV  now µs · lane · field · value … ('': delete the field). a1..a4 is no field: an anchor, from which the level
--       follows as anchor − units sent in all, so that what went out meanwhile is not forgotten
-- returns  released at once
local lane = ARGV[2]
save(load(lane))                                       -- what was earned at the old pace stays earned
local anchors = {}
for i = 3, #ARGV - 1, 2 do
  local d = tonumber(string.match(ARGV[i], '^a(%d)$'))
  if d then
    anchors[d] = tonumber(ARGV[i + 1])
  elseif ARGV[i + 1] == '' then
    redis.call('HDEL', lane_key(lane), ARGV[i])
  else
    redis.call('HSET', lane_key(lane), ARGV[i], ARGV[i + 1])
  end
end
local L = load(lane)                                   -- a new depth bounds the level
for d, anchor in pairs(anchors) do
  if L.p[d] then L.l[d] = math.min(L.d[d], anchor - L.c[d]) end
end
save(L)
wake(lane)
return release(lane, 1000)
