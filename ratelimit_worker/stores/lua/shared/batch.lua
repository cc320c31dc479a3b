-- What one step of a lane releases is written together: one command for each key, in place of one for each key and call.

-- A batch is open while a step takes calls off one queue of a lane; meanwhile its keys are read only by functions of this file.
local batch = {MOST = 1000, LOOKS = 16}              -- arguments of a command; calls that are looked at together
function batch.open() memo.batch = {order = {}, by = {}, n = 0} end
-- As redis.call('…', key, more …); while a batch is open, this is written when it is closed.
function batch.put(command, k, ...)
  local b = memo.batch
  if not b then return redis.call(command, k, ...) end
  local w = b.by[command .. k]
  if w and #w > batch.MOST then w = nil end              -- Lua unpacks some thousands at most
  if not w then
    w = {command, k}
    b.by[command .. k], b.order[#b.order + 1] = w, w
  end
  for i = 1, select('#', ...) do w[#w + 1] = (select(i, ...)) end
end
-- Writes what was put so far, and goes on.
function batch.flush() if batch.close() then batch.open() end end
-- The number of the next release.
function batch.number()
  local b = memo.batch
  if not b then return count('released') end
  b.n = b.n + 1
  if b.n == 1 then b.first = count('released') end
  return b.first + b.n - 1
end
-- The call leaves its lane.
function batch.leave(L, queue, ref)
  local b, k = memo.batch, wait_key(L.name, queue)
  if not b or L.several then
    census.change(queue, -redis.call('ZREM', k, ref))
  else
    batch.put('ZREM', k, ref)
    b.queue, b.waiting, L.left[ref] = queue, k, true
  end
end
function batch.close()                                 -- -> whether one was open
  local b = memo.batch
  if not b then return false end
  memo.batch = nil
  if b.n > 1 then count('released', b.n - 1) end
  for _, w in ipairs(b.order) do
    local done = redis.call(unpack(w))
    if w[2] == b.waiting then census.change(b.queue, -done) end
  end
  return true
end
