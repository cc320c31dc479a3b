-- What holds a call back, and until when: the second question of a release. Releases and people (by bar.lua) are answered by the
-- same function.

-- A bar is {kind; at: until when, µs (nil: until an event, see docs/lanes.md); alone: it holds only this call, and those behind
-- it may go; event: 'begins' or 'ends', what one of the lane's own calls must do (see own_room); closed: only new set-points
-- end it; known (of kind 'task'): a crew knows the task, and has no room; cost, waits (of kind 'parent'): see turns.waits}.
local bars = {NOTHING = {kind = 'nothing'}, SLOTS = {kind = 'slots'}, GONE = {kind = 'gone', alone = true}, NEWER_US = 1e6}
-- Without `say` the bar is returned, and the search ends. With it, the bar is reported to `say`, and the search goes on.
local function found(bar_found, say)
  if not say then return bar_found end
  say(bar_found)
end
function bars.own(S, say)                              -- the lane has as many calls out as it may have
  if S.moved >= S.own.free then return found({kind = S.own.bound, event = S.own.event}, say) end
end
function bars.slots(S, call, say)                      -- its queue has no free slot
  if not call.queue or step.room(S, call.queue) <= 0 then return found(bars.SLOTS, say) end
end
-- Bars of this call only: its record is gone, a newer version wrote it, no crew with room knows its task, or it is a suspect.
-- Sets call.crew, the crew to which it would go.
function bars.itself(S, call, say)
  local r, held = call.r, nil
  if not r then return not say and bars.GONE or nil end
  if r[VERSION] > SCHEMA then return found({kind = 'newer', at = now + bars.NEWER_US, alone = true}, say) end
  call.crew, call.known = crew.pick(call.queue, call.task, S.early)
  if not call.crew then
    local enough = S.set_by >= crew.PARKED_AT_ONCE     -- the next step will park the others
    held = found({kind = 'task', at = enough and now or nil, alone = not enough, known = call.known}, say)
  end
  if not held and r[LOST] > 0 and not suspect.may_go(r) then
    held = found({kind = 'suspect', at = now + suspect.again_us(), alone = true}, say)
  end
  return held
end
function bars.budget(L, cost, say)                     -- the lane's gate, pace or daily quota: the one that ends last
  local wait_us, kind = admits_in(L, cost, say)
  if wait_us ~= 0 and not say then return {kind = kind, at = wait_us and now + wait_us, closed = not wait_us} end
end
function bars.money(S, call, say)                      -- its budgets of money
  call.purses = purse.of(S.L, call.r)
  local held = purse.bar(call.purses)
  if held and held.alone and S.set_by >= crew.PARKED_AT_ONCE then held.alone, held.at = false, now end  -- as of a task
  if held then return found(held, say) end
end
function bars.share(S)                                 -- as many calls have gone as may go in this step
  if S.moved >= S.most then return {kind = 'share'} end
end
function bars.parents(S, cost, say)                    -- a parent's own bar, or lanes that go before this one there
  local waits = S.L.parents and turns.waits(S.L, cost, S.served)
  if waits then return found({kind = 'parent', waits = waits, cost = cost}, say) end
end
-- The first bar that a call meets, in this order; nil: nothing holds it back. With `say`, every bar is reported to it, and
-- nothing is returned.
local function bar(S, call, say)
  if not call then return bars.NOTHING end
  return bars.own(S, say) or bars.slots(S, call, say) or bars.itself(S, call, say) or bars.budget(S.L, call.cost, say)
    or bars.money(S, call, say) or bars.share(S) or bars.parents(S, call.cost, say)
end
-- How long a call that begins now must wait before it is sent, µs. Calls are released at the lane's pace, but messages travel for
-- different times, so several may begin together as a burst. A second bucket, of starts, spreads them again. It is kept as one
-- time: when it would be full. Its burst is half of what the lane earns in LOOK_S, the time that a message may travel; the other
-- half is for the way from here to the provider. Slow lanes never have two calls on the way at once, and need no wait.
-- known: the third result of `shut` for the lane
function bars.pause_us(lane, known, cost)
  local pace, burst = known.pace, known.pace and known.pace * LOOK_S / 2
  if not pace or burst < 1 or cost <= 0 then return 0 end
  local full = known.at and known.at < now + STEP_US and math.max(now, known.at) or now
  local gap, depth = cost * 1e6 / pace, math.max(1, (known.depth or 1) - burst)
  redis.call('HSET', lane_key(lane), FIELD.STARTS, whole(full + gap))
  return math.max(0, math.min(LOOK_S * 2e6, full - now - math.max(0, depth - cost) * 1e6 / pace))
end
