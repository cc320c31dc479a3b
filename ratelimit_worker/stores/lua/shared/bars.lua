-- What holds a call back, and until when: the second question of a release. Whoever asks it, a release or people (bar.lua),
-- is answered by the same function.

-- A bar is {kind; at: until when, µs (nil: until an event, see docs/lanes.md); alone: it holds the call alone, and those behind
-- it may go; event: what one of the lane's own calls has to do (own_room); closed: new set-points alone end it; of a 'task',
-- known: a crew without room knows it; of a 'parent', cost and waits: what turns.waits says of that}.
local bars = {NOTHING = {kind = 'nothing'}, SLOTS = {kind = 'slots'}, GONE = {kind = 'gone', alone = true}, NEWER_US = 1e6}
-- Where somebody listens he is told of the bar, and the next is asked as well.
local function found(bar_found, say)
  if not say then return bar_found end
  say(bar_found)
end
function bars.own(S, say)                              -- as many of the lane's calls are out as may be
  if S.moved >= S.own.free then return found({kind = S.own.bound, event = S.own.event}, say) end
end
function bars.slots(S, call, say)                      -- no slot is free where it waits
  if not call.queue or step.room(S, call.queue) <= 0 then return found(bars.SLOTS, say) end
end
-- What is wrong with the call alone: its record is gone, a newer version's is not ours to release, no crew with room knows its
-- task, or it ran when a worker died. call.crew: to whom it would go.
function bars.itself(S, call, say)
  local r, held = call.r, nil
  if not r then return not say and bars.GONE or nil end
  if r[VERSION] > SCHEMA then return found({kind = 'newer', at = now + bars.NEWER_US, alone = true}, say) end
  call.crew, call.known = crew.pick(call.queue, call.task, S.early)
  if not call.crew then
    local enough = S.set_by >= crew.PARKED_AT_ONCE     -- the next step goes on with the others
    held = found({kind = 'task', at = enough and now or nil, alone = not enough, known = call.known}, say)
  end
  if not held and r[LOST] > 0 and not suspect.may_go(r) then
    held = found({kind = 'suspect', at = now + suspect.again_us(), alone = true}, say)
  end
  return held
end
function bars.budget(L, cost, say)                     -- the lane's gate, its pace, its quota of the day: the last to end
  local wait_us, kind = admits_in(L, cost, say)
  if wait_us ~= 0 and not say then return {kind = kind, at = wait_us and now + wait_us, closed = not wait_us} end
end
function bars.share(S)                                 -- it has had as many as it may in this step
  if S.moved >= S.most then return {kind = 'share'} end
end
function bars.parents(S, cost, say)                    -- what a parent admits, or others that are before it there
  local waits = S.L.parents and turns.waits(S.L, cost, S.served)
  if waits then return found({kind = 'parent', waits = waits, cost = cost}, say) end
end
-- The first bar that a call meets, in this order; nil: nothing holds it back. say: a function that is told of each; nothing is
-- returned then.
local function bar(S, call, say)
  if not call then return bars.NOTHING end
  return bars.own(S, say) or bars.slots(S, call, say) or bars.itself(S, call, say) or bars.budget(S.L, call.cost, say)
    or bars.share(S) or bars.parents(S, call.cost, say)
end
-- How long a call that begins now has to wait before it is sent, µs, so that starts keep the pace too. Messages travel for some
-- ms, some longer than others: what left at its pace may begin as a burst, on top of what the bucket then lets go. A bucket
-- of starts (its virtual time: when it would be full again) takes half of what a lane may earn while a message travels, so that
-- it and the way from here to the provider are within that. Slow lanes have no two calls on the way at once.
-- known: as shut says of the lane
function bars.pause_us(lane, known, cost)
  local pace, burst = known.pace, known.pace and known.pace * LOOK_S / 2
  if not pace or burst < 1 or cost <= 0 then return 0 end
  local full = known.at and known.at < now + STEP_US and math.max(now, known.at) or now
  local gap, depth = cost * 1e6 / pace, math.max(1, (known.depth or 1) - burst)
  redis.call('HSET', lane_key(lane), FIELD.STARTS, int(full + gap))
  return math.max(0, math.min(LOOK_S * 2e6, full - now - math.max(0, depth - cost) * 1e6 / pace))
end
