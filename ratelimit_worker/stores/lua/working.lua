-- Lanes with calls that wait for their turn, their time or a slot, or are out. O(most).
-- ARGV  now µs · most of each kind
-- returns  {lane …}
local most, names, met = tonumber(ARGV[2]), {}, {}
local function meet(lanes)
  for _, lane in ipairs(lanes) do
    if not met[lane] and string.sub(lane, 1, 1) ~= '\n' then met[lane] = true; names[#names + 1] = lane end
  end
end
meet(redis.call('ZRANGE', NEXT, 0, most - 1))
meet(redis.call('SRANDMEMBER', key('busy'), most))
for _, q in ipairs(redis.call('SMEMBERS', HUNGRY)) do meet(redis.call('ZRANGE', row_key(q), 0, most - 1)) end
return names
