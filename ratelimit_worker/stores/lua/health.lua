-- How a lane's provider, and one of its functions, have done recently. O(half minutes of a record).
-- ARGV  now µs · lane · function
-- returns  {µs when it was last answered (0: never), µs when that request had left, 1: several calls had sick answers since,
--          mode, escalates ('0': no), calls sent in all, calls that are out (without those whose worker has died),
--          share of its recent calls whose first attempt was sick,
--          failed, answered: attempts of the function · failed, answered: of the lane's other functions}
local lane, name = ARGV[2], ARGV[3]
local h = redis.call('HMGET', lane_key(lane), FIELD.ANSWERED_AT, FIELD.MODE, FIELD.ESCALATES, FIELD.SEQ,
  FIELD.SICK_SHARE, FIELD.ANSWERED_SENT, FIELD.WITNESS)
local sums = {0, 0, 0, 0}
local slot = math.floor(now / fared.SLOT_US)
for i = 0, fared.SLOTS - 1 do
  local f = redis.call('HMGET', fared.key(lane, slot - i), 'f:' .. name, 'a:' .. name, 'failed', 'answered')
  for j = 1, 4 do sums[j] = sums[j] + (tonumber(f[j]) or 0) end
end
return {h[1] or '0', h[6] or '0', h[7] == failing.SEVERAL and 1 or 0, h[2] or '', h[3] or '', h[4] or '0', redis.call('ZCOUNT', out_key(lane), 0, 1), h[5] or '0',
  sums[1], sums[2], sums[3] - sums[1], sums[4] - sums[2]}
