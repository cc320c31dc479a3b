-- Write set-points of lanes; they hold for the next permit. O(lanes · fields), and what is released.
-- ARGV  now µs · for each lane: its name · revision of the lane that the writer has read ('': whatever it is) · 1: a person sets
--       limits, so the lane has a new revision (0: no) · how many fields · field · value … ('': delete the field). a1..a4 is no
--       field: an anchor, from which the level follows as anchor − units sent in all and not refused, so that what went out
--       meanwhile is not forgotten. m1..m4: the same, but it only lowers the level
-- returns  for each lane: released at once | -1 the lane has another revision by now: nothing was written | an error, in words
local MEMORY = {[FIELD.LAW] = true, [FIELD.HEALTH] = true, [FIELD.GIVEN_BACK] = true}  -- which no script obeys
local function fields_of(from, n)                      -- -> what is to be written and to be deleted, anchors, and whether it is all memory
  local write, drop, anchors, memory = {}, {}, {}, n > 0  -- nothing at all: the lane is reckoned up to now
  for i = from, from + 2 * n - 2, 2 do
    local kind, d = string.match(ARGV[i], '^([am])(%d)$')
    memory = memory and MEMORY[ARGV[i]] == true
    if d then
      anchors[tonumber(d)] = {tonumber(ARGV[i + 1]), kind == 'm'}
    elseif ARGV[i + 1] == '' then
      drop[#drop + 1] = ARGV[i]
    else
      write[#write + 1], write[#write + 2] = ARGV[i], ARGV[i + 1]
    end
  end
  return write, drop, anchors, memory
end
local function put(k, write, drop)
  if #drop > 0 then redis.call('HDEL', k, unpack(drop)) end
  if #write > 0 then redis.call('HSET', k, unpack(write)) end
end
local function relevel(before, L, anchors)
  for d = 1, N do                                      -- a debt is time: at a tenth of the pace it would last ten times as long
    if L.p[d] and L.p[d] > 0 and (before.p[d] or 0) > 0 and L.l[d] < 0 then L.l[d] = L.l[d] * L.p[d] / before.p[d] end
  end
  for d, anchor in pairs(anchors) do
    if L.p[d] then
      local refused = tonumber(redis.call('HGET', lane_key(L.name), FIELD.TURNED_BACK[d]) or '0')
      L.l[d] = math.min(anchor[2] and L.l[d] or L.d[d], anchor[1] - L.c[d] + refused)
    end
  end
end
local function write_lane(lane, from)
  local k, revision, anew, n = lane_key(lane), ARGV[from], ARGV[from + 1] == '1', tonumber(ARGV[from + 2])
  if revision ~= '' and (redis.call('HGET', k, FIELD.REVISION) or '0') ~= revision then return -1 end
  local write, drop, anchors, memory = fields_of(from + 3, n)
  if memory and not anew and redis.call('EXISTS', k) == 1 then
    put(k, write, drop)
    return 0
  end
  if anew then redis.call('HINCRBY', k, FIELD.REVISION, 1) end
  local before = load(lane)
  save(before)                                         -- what was earned at the old pace stays earned
  put(k, write, drop)
  local L = load(lane)                                 -- a new depth bounds the level
  relevel(before, L, anchors)
  save(L)
  if next(anchors) == nil and redis.call('EXISTS', queues_key(lane), out_key(lane), turns_key(lane)) == 0 then
    return 0                                           -- nothing waits in it, nor for it
  end
  wake(lane)
  return (release(lane, 1000))
end
local done, at = {}, 2
while at <= #ARGV do
  local ok, what = pcall(write_lane, ARGV[at], at + 1)  -- one that cannot be written must not keep the others from it
  done[#done + 1] = ok and what or tostring(type(what) == 'table' and what.err or what)
  at = at + 4 + 2 * tonumber(ARGV[at + 3])
end
return done
