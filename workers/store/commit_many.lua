-- The commits of many requests, each with a verdict of its own, in one step and one sync. For each of them: commit.lua.
-- KEYS  1 epoch  2 peers  3 addresses  4 gateway  5 messages taken and not acknowledged  6 their index
--       then two for each request: its result key (= channel), and where it counts in a share of the lane, or the
--       result key again
-- ARGV  1 epoch of this writer  2 a result's least TTL in s
--       then seven for each request: deadline, result, result if the deadline has passed, changes,
--       '1' if the gateway must not be draining, tag of its message, id
-- Returns {server time in ms, then for each request {verdict, stored or detail}}; 'failed' is one that met an error
-- Whoever asks for many listens on one channel for all of them: that of GATEWAY.REPLY for the ids GATEWAY.REPLY_N.
local function publish(key, record)
  redis.call('PUBLISH', key, record)
  local reply, token = string.match(key, '^(.+%.(%x+))_%d+$')
  if reply and #token == 32 then redis.call('PUBLISH', reply, record) end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch = redis.call('GET', KEYS[1])
local draining = redis.call('HGET', KEYS[4], 'state') == 'draining'
local function commit(key, share, deadline, result, late, changes, creates, tag, id)
  local function leave_share()
    if share ~= key then redis.call('ZREM', share, id) end
  end
  local function acknowledge()
    if tag ~= '' then
      redis.call('HDEL', KEYS[5], tag)
      redis.call('ZREM', KEYS[6], tag)
    end
  end
  local stored = redis.call('GET', key)
  if stored then
    if epoch == ARGV[1] then leave_share() end
    acknowledge()
    return {'duplicate', stored}
  end
  if epoch ~= ARGV[1] then return {'fenced', epoch or ''} end
  if deadline > 0 and now > deadline then
    redis.call('SET', key, late, 'EX', ARGV[2])
    publish(key, late)
    leave_share()
    acknowledge()
    return {'expired', late}
  end
  if creates == '1' and draining then return {'draining', ''} end
  changes = cjson.decode(changes)
  for _, change in ipairs(changes) do
    if (redis.call('HEXISTS', KEYS[2], change.key) == 1) ~= change.before then return {'stale', 'record'} end
    for _, prefix in ipairs(change.taken) do
      local owner = redis.call('HGET', KEYS[3], prefix)
      if owner and owner ~= change.key then return {'stale', 'address'} end
    end
  end
  for _, change in ipairs(changes) do
    for _, prefix in ipairs(change.gone) do
      if redis.call('HGET', KEYS[3], prefix) == change.key then redis.call('HDEL', KEYS[3], prefix) end
    end
    for _, prefix in ipairs(change.taken) do redis.call('HSET', KEYS[3], prefix, change.key) end
    if change.record then
      redis.call('HSET', KEYS[2], change.key, change.record)
    elseif not change.kept then
      redis.call('HDEL', KEYS[2], change.key)
    end
  end
  local left = math.ceil((deadline - now) / 1000) + 60
  redis.call('SET', key, result, 'EX', math.max(tonumber(ARGV[2]), math.min(left, 90000)))
  publish(key, result)
  leave_share()
  acknowledge()
  return {'committed', ''}
end
local answers = {now}
for number = 0, (#KEYS - 6) / 2 - 1 do
  local key, at = 7 + number * 2, 3 + number * 7
  -- A key of a foreign kind, or a right that this user lacks, is that request's own misfortune.
  local ok, answer = pcall(commit, KEYS[key], KEYS[key + 1], tonumber(ARGV[at]), unpack(ARGV, at + 1, at + 6))
  answers[#answers + 1] = ok and answer or {'failed', ''}
end
return answers
