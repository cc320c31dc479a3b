-- Look at some of all lanes, and return those that matter most: in a stricter mode, with a pin of their own, with calls, used
-- last. O(lanes looked at).
-- ARGV  now µs · cursor (0: begin) · about how many to look at · most to return · text in their names, in lower case ('': any) ·
--       rank and name of a lane: only lanes that come before it are returned ('', '': all)
-- returns  {cursor (0: that was all), {mode, how many of the lanes with that text are in it …}, {lane, rank …}, highest first};
--          rank = GROUP · (4 · mode + 2 if it has a pin of its own + 1 if it has calls) + hour of its last use
local GROUP, STRICT = 1e7, {REDUCED = 1, EMERGENCY = 2, HALT = 3}
local ranked, modes, pinned = {}, {}, redis.call('EXISTS', key('pins')) == 1
local last, last_lane = tonumber(ARGV[6]), ARGV[7]
local HASH, QUEUES, OUT = lane_key(''), queues_key(''), out_key('')
local function rank_of(lane, mode, used_us)
  local group = 4 * (STRICT[mode] or 0)
  if pinned and redis.call('HEXISTS', key('pins'), lane) == 1 then group = group + 2 end
  if redis.call('EXISTS', QUEUES .. lane, OUT .. lane) > 0 then group = group + 1 end
  return GROUP * group + math.floor(used_us / HOUR_US)
end
local some = redis.call('ZSCAN', key('lanes'), ARGV[2], 'COUNT', ARGV[3])
for i = 1, #some[2], 2 do
  local lane = some[2][i]
  if ARGV[5] == '' or string.find(string.lower(lane), ARGV[5], 1, true) then
    local h = redis.call('HMGET', HASH .. lane, FIELD.MODE, FIELD.SCHEMA)
    if h[1] or h[2] or redis.call('EXISTS', HASH .. lane) == 1 then
      local mode = h[1] or 'NORMAL'
      modes[mode] = (modes[mode] or 0) + 1
      local rank = rank_of(lane, mode, tonumber(some[2][i + 1]))
      if not last or rank > last or (rank == last and lane < last_lane) then ranked[#ranked + 1] = {lane, rank} end
    end
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
