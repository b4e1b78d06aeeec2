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
local function tell(queue, raw, tag)
  local ok, envelope = pcall(cjson.decode, raw)
  taken[#taken + 1] = {queue, raw, tag, ok and answered(envelope) or '0'}
end
local function note(queue, raw)
  local tag = ARGV[2] .. (#taken + 1)
  redis.call('ZADD', KEYS[4], tonumber(ARGV[1]) + #taken / 1000000, tag)
  redis.call('HSET', KEYS[3], tag, '[' .. raw .. ',"","' .. queue .. '"]')
  tell(queue, raw, tag)
end
local function noted_before()
  for number = 1, tonumber(ARGV[4]) do
    local tag = ARGV[2] .. number
    local stored = redis.call('HGET', KEYS[3], tag)
    if not stored then return number > 1 end
    for _, queue in ipairs({KEYS[1], KEYS[2]}) do
      local ends = ',"","' .. queue .. '"]'
      if string.sub(stored, -#ends) == ends then tell(queue, string.sub(stored, 2, -#ends - 1), tag) end
    end
  end
  return true
end
local function pop(queue, count)
  local popped = redis.pcall('RPOP', queue, count)
  -- Without the right to pop, or a queue of another kind: what is in hand goes alone.
  return popped and not popped.err and popped or {}
end
if noted_before() then return taken end
note(ARGV[6], ARGV[7])
local most = tonumber(ARGV[4])
if ARGV[6] == KEYS[1] then
  for _, raw in ipairs(pop(KEYS[1], most - 1)) do note(KEYS[1], raw) end
  return taken
end
-- Bulk yields: a group of it is short, and a list, which weighs as much as all of its peers, goes alone.
local bytes = #ARGV[7]
while #taken < most and bytes < tonumber(ARGV[5]) and redis.call('LLEN', KEYS[1]) == 0 do
  local raw = pop(KEYS[2], 1)[1]
  if not raw then break end
  note(KEYS[2], raw)
  bytes = bytes + #raw
end
return taken
