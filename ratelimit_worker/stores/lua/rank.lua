-- Look at some lanes of all, and name those that matter most: in a stricter mode, with a pin of their own, with calls, used last.
-- O(lanes looked at).
-- ARGV  now µs · cursor (0: begin) · about how many to look at · most to name · part of their names, in small letters ('': any)
-- returns  {cursor (0: those were the last), {mode, how many of those with the part are in it …},
--          {lane, rank …}, the highest first}, rank being GROUP · (4 · mode + 2 with a pin of its own + 1 with calls) + hour of its last use
local GROUP, STRICT = 1e7, {REDUCED = 1, EMERGENCY = 2, HALT = 3}
local ranked, modes, pinned = {}, {}, redis.call('EXISTS', key('pins')) == 1
local function rank_of(lane, mode, used_us)
  local group = 4 * (STRICT[mode] or 0)
  if pinned and redis.call('HEXISTS', key('pins'), lane) == 1 then group = group + 2 end
  if redis.call('EXISTS', queues_key(lane), out_key(lane)) > 0 then group = group + 1 end
  return GROUP * group + math.floor(used_us / HOUR_US)
end
local some = redis.call('ZSCAN', key('lanes'), ARGV[2], 'COUNT', ARGV[3])
for i = 1, #some[2], 2 do
  local lane = some[2][i]
  local h = redis.call('HMGET', lane_key(lane), FIELD.MODE, FIELD.SCHEMA)
  local there = h[1] or h[2] or redis.call('EXISTS', lane_key(lane)) == 1
  if there and (ARGV[5] == '' or string.find(string.lower(lane), ARGV[5], 1, true)) then
    local mode = h[1] or 'NORMAL'
    modes[mode] = (modes[mode] or 0) + 1
    ranked[#ranked + 1] = {lane, rank_of(lane, mode, tonumber(some[2][i + 1]))}
  end
end
table.sort(ranked, function(a, b)
  if a[2] == b[2] then return a[1] < b[1] end
  return a[2] > b[2]
end)
local counts, named = {}, {}
for mode, n in pairs(modes) do counts[#counts + 1], counts[#counts + 2] = mode, n end
for i = 1, math.min(#ranked, tonumber(ARGV[4])) do named[2 * i - 1], named[2 * i] = ranked[i][1], int(ranked[i][2]) end
return {some[1], counts, named}
