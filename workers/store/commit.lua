-- The commit: the one place where requests' outcomes become true. For each request all or nothing; asking twice is
-- harmless. Many requests are committed in one step and one sync, each with a verdict of its own.
-- KEYS  1 epoch  2 peers  3 addresses  4 gateway  5 messages taken and not acknowledged  6 their index
--       then two for each request: its result key (= channel), and where it counts in a share of the lane, or the
--       result key again
-- ARGV  1 epoch of this writer  2 a result's least TTL in s
--       then seven for each request:
--         deadline   in ms on this server's clock, 0 for none
--         result
--         late       the result to store if the deadline has passed
--         changes    a JSON list of {key, before, kept, record, gone, taken}:
--           key      public key
--           before   whether the plan was made on a stored record
--           kept     true: nothing to change, but the answer says so, and so it must be true
--           record   the record to store; absent: delete it
--           gone     prefixes given up; taken: prefixes that are taken
--         creates    '1' if the gateway must not be draining
--         tag        of the message that asked for it, which is acknowledged in the same step; '' for none
--         id         of the request
-- Returns {server time in ms, then for each request {verdict, stored or detail}}: committed | duplicate | fenced |
-- expired | stale | draining; 'failed' is one of many that met an error
-- Whoever asks for many listens on one channel for all of them: that of GATEWAY.REPLY for the ids GATEWAY.REPLY_N.
local function publish(key, record)
  redis.call('PUBLISH', key, record)
  local reply, token = string.match(key, '^(.+%.(%x+))_%d+$')
  if reply and #token == 32 then redis.call('PUBLISH', reply, record) end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch = redis.call('GET', KEYS[1])
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
  local function settle(record, ttl)
    redis.call('SET', key, record, 'EX', ttl)
    publish(key, record)
    leave_share()
    acknowledge()
  end
  local stored = redis.call('GET', key)
  if stored then
    if epoch == ARGV[1] then leave_share() end
    acknowledge()
    return {'duplicate', stored}
  end
  if epoch ~= ARGV[1] then return {'fenced', epoch or ''} end
  if deadline > 0 and now > deadline then
    settle(late, ARGV[2])
    return {'expired', late}
  end
  if creates == '1' and redis.call('HGET', KEYS[4], 'state') == 'draining' then return {'draining', ''} end
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
  -- As long as the request may be delivered again, its outcome is known; a deadline is at most a day ahead.
  local left = math.ceil((deadline - now) / 1000) + 60
  settle(result, math.max(tonumber(ARGV[2]), math.min(left, 90000)))
  return {'committed', ''}
end
local answers = {now}
local alone = #KEYS == 8
for number = 0, (#KEYS - 6) / 2 - 1 do
  local key, at = 7 + number * 2, 3 + number * 7
  local function one()
    return commit(KEYS[key], KEYS[key + 1], tonumber(ARGV[at]), unpack(ARGV, at + 1, at + 6))
  end
  if alone then
    answers[2] = one()
  else
    -- A key of a foreign kind, or a right that this user lacks, is that request's own misfortune.
    local ok, answer = pcall(one)
    answers[#answers + 1] = ok and answer or {'failed', ''}
  end
end
return answers
