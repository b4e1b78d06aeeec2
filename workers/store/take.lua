-- Take what waits in a lane, many messages at once: popped and noted as taken in one step, so that none is lost between.
-- What is dead (its request has an outcome, or its deadline has passed) is struck out instead of noted, and a late one gets
-- its outcome here. While the oldest is late, the newest are taken, deletes before all others: docs/adr/0008.
-- Asked again with the same tags, it answers what it has noted under them: an answer that was lost costs nothing.
-- KEYS  1 interactive queue  2 bulk queue  3 messages taken and not acknowledged  4 their index
-- ARGV  1 this host's time in s       2 what the tags of this call begin with   3 gateway
--       4 most messages in all        5 bytes of bulk messages after which no more are taken
--       6 queue of the message that was popped already   7 that message
--       8 record of a request whose deadline has passed, @request-id@ in the place of its id   9 its TTL in s
--       10 most that are struck out at the old end of a queue
--       11 ms before its deadline from which on a request counts as late when a lane's order is chosen
--       12 how many of a late lane's newest are looked through for deletes; of the oldest a quarter as many
--       13 how a delete's task begins
-- Returns {list of {queue, message, tag, '1' if its request may have an outcome already}, list of the struck out:
--          {queue, message, request id, task, record of its outcome}}
local taken, dead = {}, {}
local most, bytes_left = tonumber(ARGV[4]), tonumber(ARGV[5])
local late, in_order = false, false
local full = false  -- whether nothing else may go with what is taken
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local begins = ARGV[3] .. '.'
-- Whoever asks for many listens on one channel for all of them: that of GATEWAY.REPLY for the ids GATEWAY.REPLY_N.
local function publish(key, record)
  redis.call('PUBLISH', key, record)
  local reply, token = string.match(key, '^(.+%.(%x+))_%d+$')
  if reply and #token == 32 then redis.call('PUBLISH', reply, record) end
end
local function read(raw)
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
-- Requests that are in hand: another message of one of them, with an earlier deadline, is none of its own.
local in_hand = {}
local function redelivered(headers) return headers.redelivered == true end
-- A list, a slice of a sweep or an import weighs as much as all of its peers: it goes alone.
local function weighs_much(headers)
  return type(headers.task) == 'string' and string.match(headers.task, '^peerlane%.%l+_peers$') ~= nil
end
local function is_late(headers, margin)
  local deadline = headers.deadline
  return type(deadline) == 'number' and deadline > 0 and now + margin > deadline
end
-- The record of its outcome, if it has one or gets one now; and whether something else is in the place of one.
local function outcome(headers)
  local id = sound_id(headers)
  if not id then return nil, false end
  local key = 'celery-task-meta-' .. id
  local stored = redis.pcall('GET', key)
  if type(stored) == 'string' then return stored, false end
  if stored then return nil, true end
  if in_hand[id] or not is_late(headers, 0) then return nil, false end
  local record = string.gsub(ARGV[8], '@request%-id@', id)
  redis.call('SET', key, record, 'EX', ARGV[9])
  publish(key, record)
  return record, false
end
local function tell(queue, raw, tag, doubtful) taken[#taken + 1] = {queue, raw, tag, doubtful and '1' or '0'} end
-- Strike it out, or note it as taken.
local function settle(queue, raw, headers)
  local record, doubtful = outcome(headers)
  if record then
    local task = type(headers.task) == 'string' and headers.task or ''
    dead[#dead + 1] = {queue, raw, headers.id, task, record}
    -- What was cancelled says little of the lane where its deadline is known.
    late = late or type(headers.deadline) ~= 'number' or is_late(headers, tonumber(ARGV[11]))
    return
  end
  in_hand[sound_id(headers) or ''] = true
  local tag = ARGV[2] .. (#taken + 1)
  redis.call('ZADD', KEYS[4], tonumber(ARGV[1]) + #taken / 1000000, tag)
  redis.call('HSET', KEYS[3], tag, '[' .. raw .. ',"","' .. queue .. '"]')
  tell(queue, raw, tag, doubtful)
  full = full or weighs_much(headers)
  if queue == KEYS[2] then bytes_left = bytes_left - #raw end
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
-- The newest of a late lane: the oldest would be late before they are committed.
local function take_newest(queue)
  local span = tonumber(ARGV[12])
  local newest = redis.pcall('LRANGE', queue, 0, span - 1)
  local oldest = redis.pcall('LRANGE', queue, -span / 4, -1)
  if newest.err or oldest.err then  -- without the right to look: the oldest first, as ever
    in_order = true
    return
  end
  local function takes(raw, count)
    local headers = read(raw)
    if redelivered(headers) or not has_room() or (#taken > 0 and weighs_much(headers)) then return end
    if redis.pcall('LREM', queue, count, raw) == 1 then settle(queue, raw, headers) end
  end
  -- Deletes are looked for at both ends: where they come in, and where they would be late next.
  local function take_deletes(messages, count)
    for at = #messages, 1, -1 do
      -- The text could be anywhere in a message, so it only tells which are worth reading.
      if string.find(messages[at], ARGV[13], 1, true) then
        local task = read(messages[at]).task
        if type(task) == 'string' and string.sub(task, 1, #ARGV[13]) == ARGV[13] then
          takes(messages[at], count)
          messages[at] = false
        end
      end
    end
  end
  take_deletes(oldest, -1)
  newest = redis.call('LRANGE', queue, 0, span - 1)
  take_deletes(newest, 1)
  local room, chosen = most - #taken, {}
  for _, raw in ipairs(newest) do
    if #chosen >= room then break end
    if raw then chosen[#chosen + 1] = raw end
  end
  for at = #chosen, 1, -1 do takes(chosen[at], 1) end  -- those that are taken keep their order
end
-- What was delivered before is taken alone: it may be what ended the writer, and each delivery is counted.
local function take_more(queue)
  local struck_out = 0
  while has_room() do
    local raw = redis.pcall('RPOP', queue)
    -- Without the right to pop, or a queue of another kind: what is in hand goes alone.
    if not raw or type(raw) == 'table' then return end
    local headers = read(raw)
    local before = #dead
    if (redelivered(headers) or (#taken > 0 and weighs_much(headers))) and not outcome(headers) then
      redis.call('RPUSH', queue, raw)
      return
    end
    local enough = struck_out >= tonumber(ARGV[10])
    local in_vain = late or is_late(headers, tonumber(ARGV[11]))
    if not in_order and (enough or (in_vain and not outcome(headers))) then
      redis.call('RPUSH', queue, raw)
      take_newest(queue)
      if enough or not in_order then return end
    else
      settle(queue, raw, headers)
      struck_out = struck_out + #dead - before
    end
  end
end
if noted_before() then return {taken, dead} end
local first = read(ARGV[7])
settle(ARGV[6], ARGV[7], first)
if #taken > 0 and redelivered(first) then return {taken, dead} end
if ARGV[6] == KEYS[1] then
  bytes_left = math.huge
  take_more(KEYS[1])
-- Bulk yields: a group of it is short.
elseif redis.call('LLEN', KEYS[1]) == 0 then
  take_more(KEYS[2])
end
return {taken, dead}
