-- Take waiting messages of a lane, many at once: popped and noted as taken in one step, so that none is lost.
-- A dead one (its request has an outcome, or its deadline has passed) is struck out instead of noted, and a late one gets
-- its outcome here. While many wait, deletes go first; while the oldest is late, the newest are taken: docs/adr/0008.
-- Asked again with the same tags, it answers what it has noted under them: an answer that was lost costs nothing.
-- KEYS  1 interactive queue  2 bulk queue  3 messages taken and not acknowledged  4 their index
-- ARGV  1 this host's time in s       2 what the tags of this call begin with   3 gateway
--       4 most messages in all        5 bytes of bulk messages after which no more are taken
--       6 queue of the message that was popped already   7 that message
--       8 record of a request whose deadline has passed, @request-id@ in the place of its id   9 its TTL in s
--       10 most that are struck out at the old end of a queue
--       11 ms before its deadline from which on a request counts as late when a lane's order is chosen
--       12 messages that wait from which on deletes go first  13 how many are looked through for deletes in one call
--       14 most deletes that go first       15 '1': bulk has its turn, if anything waits there
--       16 17 of the interactive queue: its length after the last call, and how many of its newest had not been looked
--       through for deletes then      18 19 the same of the bulk queue      20 .. how tasks begin that only make room
-- Returns {list of {queue, message, tag, '1' if its request may have an outcome already}, list of the struck out:
--          {message, request id, task, record of its outcome, '' where it is that of ARGV 8}, {what 16 to 19 are next time}}
local taken, dead = {}, {}
local most, bytes_left = tonumber(ARGV[4]), tonumber(ARGV[5])
local late, in_order = false, false
local full = false  -- whether nothing else may go with what is taken
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local begins = ARGV[3] .. '.'
-- A caller of many requests listens on one channel for all: that of GATEWAY.REPLY for the ids GATEWAY.REPLY_N.
local function publish(key, record)
  redis.call('PUBLISH', key, record)
  local reply, token = string.match(key, '^(.+%.(%x+))_%d+$')
  if reply and #token == 32 then redis.call('PUBLISH', reply, record) end
end
-- The value of a header as our clients and Celery write it, found without decoding all of the message: an unescaped
-- "name": is a name in JSON, wherever it stands. false: it is there in another form.
local function header(raw, name, form, from)
  local at = string.find(raw, '"' .. name .. '":', from, true)
  if not at then return nil end
  return string.match(raw, '^ *' .. form .. ' *[,}]', at + #name + 3) or false
end
local function read(raw)
  local from = string.find(raw, '"headers":', 1, true)
  if from and not string.find(raw, '"redelivered"', 1, true) then
    local id, task = header(raw, 'id', '"([^"\\]*)"', from), header(raw, 'task', '"([^"\\]*)"', from)
    local deadline = header(raw, 'deadline', '(%d+)', from)
    if id and task and deadline ~= false then return {id = id, task = task, deadline = tonumber(deadline)} end
  end
  local ok, envelope = pcall(cjson.decode, raw)
  if ok and type(envelope) == 'table' and type(envelope.headers) == 'table' then return envelope.headers end
  return {}
end
local function sound_id(headers)
  local id = headers.id
  if type(id) ~= 'string' or string.sub(id, 1, #begins) ~= begins then return nil end
  local token = string.sub(id, #begins + 1)
  -- Of a sound id only: another key might not be for this user to read.
  return #token <= 64 and string.match(token, '^[A-Za-z0-9][A-Za-z0-9_-]*$') and id or nil
end
local function redelivered(headers) return headers.redelivered == true end
-- A list, a slice of a sweep or an import weighs as much as all of its peers: it goes alone.
local function weighs_much(headers)
  return type(headers.task) == 'string' and string.match(headers.task, '^peerlane%.%l+_peers$') ~= nil
end
local function is_late(headers, margin)
  local deadline = headers.deadline
  return type(deadline) == 'number' and deadline > 0 and now + margin > deadline
end
-- The record of its outcome, if it has one or gets one now ('': that of ARGV 8); and whether something else is there.
local function outcome(headers)
  local id = sound_id(headers)
  if not id then return nil, false end
  local key = 'celery-task-meta-' .. id
  local stored = redis.pcall('GET', key)
  if type(stored) == 'string' then return stored, false end
  if stored then return nil, true end
  if not is_late(headers, 0) then return nil, false end
  local record = string.gsub(ARGV[8], '@request%-id@', id)
  redis.call('SET', key, record, 'EX', ARGV[9])
  publish(key, record)
  return '', false
end
local function tell(queue, raw, tag, doubtful) taken[#taken + 1] = {queue, raw, tag, doubtful and '1' or '0'} end
-- Strike it out, or note it as taken. ``record`` and ``doubtful`` are what outcome() says.
local function settle(queue, raw, headers, record, doubtful)
  if record then
    dead[#dead + 1] = {raw, headers.id, type(headers.task) == 'string' and headers.task or '', record}
    -- A cancelled request with a known deadline does not show that the lane is late.
    late = late or type(headers.deadline) ~= 'number' or is_late(headers, tonumber(ARGV[11]))
    return
  end
  local tag = ARGV[2] .. (#taken + 1)
  redis.call('ZADD', KEYS[4], tonumber(ARGV[1]) + #taken / 1000000, tag)
  redis.call('HSET', KEYS[3], tag, '[' .. raw .. ',"","' .. queue .. '"]')
  tell(queue, raw, tag, doubtful)
  full = full or weighs_much(headers)
  if queue == KEYS[2] then bytes_left = bytes_left - #raw end
end
-- Of a queue, how many of its newest have not been looked through for deletes. Only this procedure and the BRPOP
-- before it take messages off a queue; if another program did, the whole queue is looked through anew.
local unseen = {}
for at, queue in ipairs({KEYS[1], KEYS[2]}) do
  local length = redis.call('LLEN', queue)
  local before, seen_not = tonumber(ARGV[14 + 2 * at]), tonumber(ARGV[15 + 2 * at])
  local came = length - before + (queue == ARGV[6] and 1 or 0)
  unseen[queue] = came < 0 and length or math.min(length, seen_not + came)
end
local function noted_before()
  for number = 1, most do
    local tag = ARGV[2] .. number
    local stored = redis.call('HGET', KEYS[3], tag)
    if not stored then return number > 1 end
    for _, queue in ipairs({KEYS[1], KEYS[2]}) do
      local ends = ',"","' .. queue .. '"]'
      if string.sub(stored, -#ends) == ends then
        local raw = string.sub(stored, 2, -#ends - 1)
        local record, doubtful = outcome(read(raw))
        tell(queue, raw, tag, record or doubtful)
      end
    end
  end
  return true
end
local function has_room() return not full and #taken < most and bytes_left > 0 end
-- Take one out of the middle of a queue, at a place counted from its newest. Whether something was done with it.
local function take_at(queue, place, raw, headers)
  if redelivered(headers) or not has_room() or (#taken > 0 and weighs_much(headers)) then return end
  local from = place * 2 > redis.call('LLEN', queue) and -1 or 1  -- from the nearer end
  if redis.pcall('LREM', queue, from, raw) ~= 1 then return end
  if place < unseen[queue] then unseen[queue] = unseen[queue] - 1 end
  settle(queue, raw, headers, outcome(headers))
end
local function makes_room(raw)
  for at = 20, #ARGV do
    -- The text could be anywhere in a message, so it only tells which are worth reading.
    if string.find(raw, ARGV[at], 1, true) then
      local headers = read(raw)
      if type(headers.task) == 'string' and string.sub(headers.task, 1, #ARGV[at]) == ARGV[at] then return headers end
    end
  end
end
-- Deletes in the order in which they came: each message is looked at once. One that would be late before its commit
-- waits for those that would not.
local function take_deletes(queue)
  local left, nearly, limit = tonumber(ARGV[13]), {}, #taken + tonumber(ARGV[14])
  -- What this call has popped off the queue's old end is not there any more.
  unseen[queue] = math.min(unseen[queue], redis.call('LLEN', queue))
  while left > 0 and unseen[queue] > 0 and #taken < limit and has_room() do
    local first = math.max(0, unseen[queue] - math.min(left, 128))
    local messages = redis.pcall('LRANGE', queue, first, unseen[queue] - 1)
    if messages.err or #messages == 0 then return end  -- without the right to look: in their order, as usual
    for at = #messages, 1, -1 do
      if #taken >= limit or not has_room() then break end
      local raw, place = messages[at], first + at - 1
      left, unseen[queue] = left - 1, place
      local headers = makes_room(raw)
      if headers and is_late(headers, tonumber(ARGV[11])) then
        nearly[#nearly + 1] = {place, raw, headers}
      elseif headers then
        take_at(queue, place, raw, headers)
      end
    end
  end
  for _, each in ipairs(nearly) do
    if #taken < limit then take_at(queue, unpack(each)) end
  end
end
-- The newest of a late lane: the oldest would be late before they are committed.
local function take_newest(queue)
  local newest = redis.pcall('LRANGE', queue, 0, most - #taken - 1)
  if newest.err then  -- without the right to look: the oldest first, as usual
    in_order = true
    return
  end
  for at = #newest, 1, -1 do  -- those that are taken keep their order
    take_at(queue, at - 1, newest[at], read(newest[at]))
  end
end
-- What was delivered before is taken alone: it may be what ended the writer, and each delivery is counted.
local function take_more(queue, looked)
  local struck_out, enough = 0, tonumber(ARGV[10])
  while has_room() do
    local raw = redis.pcall('RPOP', queue)
    -- Without the right to pop, or a queue of another kind: what is in hand goes alone.
    if not raw or type(raw) == 'table' then return end
    local headers = read(raw)
    local record, doubtful = outcome(headers)
    if not record and (redelivered(headers) or (#taken > 0 and weighs_much(headers))) then
      redis.call('RPUSH', queue, raw)
      return
    end
    local in_vain = not record and (late or is_late(headers, tonumber(ARGV[11])))
    if in_vain and not in_order then
      redis.call('RPUSH', queue, raw)
    else
      settle(queue, raw, headers, record, doubtful)
      if record then struck_out = struck_out + 1 end
    end
    if not in_order and (in_vain or struck_out >= enough) then
      if not looked then take_deletes(queue) end
      looked = true
      if has_room() then take_newest(queue) end
      if not in_order then return end
    end
    if struck_out >= enough then return end
  end
end
local function answer()
  local state = {}
  for _, queue in ipairs({KEYS[1], KEYS[2]}) do
    local length = redis.call('LLEN', queue)
    state[#state + 1] = length
    state[#state + 1] = math.min(length, unseen[queue])
  end
  return {taken, dead, state}
end
if noted_before() then
  for queue in pairs(unseen) do unseen[queue] = math.huge end
  return answer()
end
local queue, raw, turn = ARGV[6], ARGV[7], false
if ARGV[15] == '1' and queue == KEYS[1] and not redelivered(read(raw)) then
  local other = redis.pcall('RPOP', KEYS[2])
  if type(other) == 'string' then
    redis.call('RPUSH', queue, raw)
    queue, raw, turn = KEYS[2], other, true
  end
end
local first, more = read(raw), true
if queue == KEYS[1] then
  bytes_left = math.huge
else
  more = turn or redis.call('LLEN', KEYS[1]) == 0  -- bulk yields: a group of it is short
end
local many = more and not redelivered(first) and redis.call('LLEN', queue) >= tonumber(ARGV[12])
if many then take_deletes(queue) end
if #taken > 0 and (not has_room() or weighs_much(first)) then
  redis.call('RPUSH', queue, raw)
else
  settle(queue, raw, first, outcome(first))
  if more and not (#taken > 0 and redelivered(first)) then take_more(queue, many) end
end
return answer()
