-- Take what waits in a lane, many messages at once: popped and noted as taken in one step, so that none is lost between.
-- Asked again with the same tags, it answers what it has noted under them: an answer that was lost costs nothing.
-- KEYS  1 interactive queue  2 bulk queue  3 messages taken and not acknowledged  4 their index
-- ARGV  1 this host's time in s       2 what the tags of this call begin with   3 gateway
--       4 most messages in all        5 bytes of bulk messages after which no more are taken
--       6 queue of the message that was popped already   7 that message
-- Returns a list of {queue, message, tag, '1' if its request may have an outcome already}
local taken = {}
local begins = ARGV[3] .. '.'
local function answered(envelope)
  local id = type(envelope) == 'table' and type(envelope.headers) == 'table' and envelope.headers.id
  if type(id) ~= 'string' or string.sub(id, 1, #begins) ~= begins then return '0' end
  local token = string.sub(id, #begins + 1)
  -- Of a sound id only: another key might not be for this user to read.
  if #token > 64 or not string.match(token, '^[A-Za-z0-9][A-Za-z0-9_-]*$') then return '0' end
  return redis.pcall('GET', 'celery-task-meta-' .. id) and '1' or '0'
end
local function read(raw)
  local ok, envelope = pcall(cjson.decode, raw)
  return ok and envelope
end
local function redelivered(envelope)
  local headers = type(envelope) == 'table' and envelope.headers
  return type(headers) == 'table' and headers.redelivered == true
end
-- A list, a slice of a sweep or an import weighs as much as all of its peers.
local function weighs_much(envelope)
  local headers = type(envelope) == 'table' and envelope.headers
  local task = type(headers) == 'table' and headers.task
  return type(task) == 'string' and string.match(task, '^peerlane%.%l+_peers$') ~= nil
end
local function alone(envelope)
  return redelivered(envelope) or weighs_much(envelope)
end
local function tell(queue, raw, tag, envelope)
  taken[#taken + 1] = {queue, raw, tag, answered(envelope)}
end
local function note(queue, raw, envelope)
  local tag = ARGV[2] .. (#taken + 1)
  redis.call('ZADD', KEYS[4], tonumber(ARGV[1]) + #taken / 1000000, tag)
  redis.call('HSET', KEYS[3], tag, '[' .. raw .. ',"","' .. queue .. '"]')
  tell(queue, raw, tag, envelope)
end
local function noted_before()
  for number = 1, tonumber(ARGV[4]) do
    local tag = ARGV[2] .. number
    local stored = redis.call('HGET', KEYS[3], tag)
    if not stored then return number > 1 end
    for _, queue in ipairs({KEYS[1], KEYS[2]}) do
      local ends = ',"","' .. queue .. '"]'
      if string.sub(stored, -#ends) == ends then
        local raw = string.sub(stored, 2, -#ends - 1)
        tell(queue, raw, tag, read(raw))
      end
    end
  end
  return true
end
-- What was delivered before is taken alone: it may be what ended the writer, and each delivery is counted.
local function more(queue)
  local raw = redis.pcall('RPOP', queue)
  -- Without the right to pop, or a queue of another kind: what is in hand goes alone.
  if not raw or type(raw) == 'table' then return nil end
  local envelope = read(raw)
  if alone(envelope) then
    redis.call('RPUSH', queue, raw)
    return nil
  end
  note(queue, raw, envelope)
  return #raw
end
if noted_before() then return taken end
local first = read(ARGV[7])
note(ARGV[6], ARGV[7], first)
if alone(first) then return taken end
local most = tonumber(ARGV[4])
if ARGV[6] == KEYS[1] then
  while #taken < most and more(KEYS[1]) do end
  return taken
end
-- Bulk yields: a group of it is short.
local bytes = #ARGV[7]
while #taken < most and bytes < tonumber(ARGV[5]) and redis.call('LLEN', KEYS[1]) == 0 do
  local size = more(KEYS[2])
  if not size then break end
  bytes = bytes + size
end
return taken
