-- Write set-points of lanes; they hold for the next permit. O(lanes · fields), and what is released.
-- ARGV  now µs · for each lane: its name · revision of the lane that the writer has read ('': any) · 1: a person sets limits or a
--       mode, so the lane gets a new revision (0: no) · how many fields · field · value … ('': delete the field). Beside fields
--       there may be anchors (FIELD.ANCHOR): level = anchor − units sent in all and not refused, so calls that left since the anchor was
--       calculated still count. FIELD.ANCHOR_LOWERS: the same, but it never raises the level
-- returns  for each lane: calls released at once | -1 it has another revision by now, so nothing was written | an error, in words
local MEMORY = {[FIELD.LAW] = true, [FIELD.HEALTH] = true, [FIELD.GIVEN_BACK] = true}  -- fields that no script obeys
local ANCHORED = {}                                    -- name of an anchor -> {its dimension, whether it only lowers}
for d = 1, N do
  ANCHORED[FIELD.ANCHOR[d]], ANCHORED[FIELD.ANCHOR_LOWERS[d]] = {d, false}, {d, true}
end
-- -> fields to write, fields to delete, anchors by dimension, and whether only what the law remembers is written
local function fields_of(from, n)
  local write, drop, anchors, memory = {}, {}, {}, n > 0  -- no field at all: the levels are brought up to now
  for i = from, from + 2 * n - 2, 2 do
    local name, value = ARGV[i], ARGV[i + 1]
    local anchored = ANCHORED[name]
    memory = memory and MEMORY[name] == true
    if anchored then
      anchors[anchored[1]] = {units = tonumber(value), lowers = anchored[2]}
    elseif value == '' then
      drop[#drop + 1] = name
    else
      write[#write + 1], write[#write + 2] = name, value
    end
  end
  return write, drop, anchors, memory
end
local function put(k, write, drop)
  if #drop > 0 then redis.call('HDEL', k, unpack(drop)) end
  if #write > 0 then redis.call('HSET', k, unpack(write)) end
end
local function relevel(before, L, anchors)
  for d = 1, N do                                      -- a debt keeps its length in time: it shrinks and grows with the pace
    if L.p[d] and L.p[d] > 0 and (before.p[d] or 0) > 0 and L.l[d] < 0 then L.l[d] = L.l[d] * L.p[d] / before.p[d] end
  end
  for d, anchor in pairs(anchors) do
    if L.p[d] then
      local refused = tonumber(redis.call('HGET', lane_key(L.name), FIELD.TURNED_BACK[d]) or '0')
      L.l[d] = math.min(anchor.lowers and L.l[d] or L.d[d], anchor.units - L.c[d] + refused)
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
  save(before)                                         -- until now the bucket has filled at the old pace
  put(k, write, drop)
  local L = load(lane)                                 -- a new depth bounds the level
  relevel(before, L, anchors)
  save(L)
  if next(anchors) == nil and redis.call('EXISTS', queues_key(lane), out_key(lane), turns_key(lane)) == 0 then
    return 0                                           -- nothing waits in the lane, and no lane waits for it as its parent
  end
  wake(lane)
  return (release(lane, 1000))
end
local done, at = {}, 2
while at <= #ARGV do
  local ok, what = pcall(write_lane, ARGV[at], at + 1)  -- one that fails must not keep the others from being written
  done[#done + 1] = ok and what or tostring(type(what) == 'table' and what.err or what)
  at = at + 4 + 2 * tonumber(ARGV[at + 3])
end
return done
