-- Begins the procedures that make outcomes true: commit and redo, which have the first six KEYS in common.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function apply(changes)
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
end
local function leave_share(key, share, id)
  if share ~= key then redis.call('ZREM', share, id) end
end
local function acknowledge(tag)
  if tag ~= '' then
    redis.call('HDEL', KEYS[5], tag)
    redis.call('ZREM', KEYS[6], tag)
  end
end
-- Whoever asks for many listens on one channel for all of them: that of GATEWAY.REPLY for the ids GATEWAY.REPLY_N.
local function publish(key, record)
  redis.call('PUBLISH', key, record)
  local reply, token = string.match(key, '^(.+%.(%x+))_%d+$')
  if reply and #token == 32 then redis.call('PUBLISH', reply, record) end
end
-- Seconds for which an outcome is kept: as long as its request may be delivered again, or asked again with time left. A
-- deadline is at most a day ahead.
local function life(deadline, least)
  return math.max(tonumber(least), math.min(math.ceil((deadline - now) / 1000) + 60, 90000))
end
local function settle(key, share, tag, id, record, ttl)
  redis.call('SET', key, record, 'EX', ttl)
  publish(key, record)
  leave_share(key, share, id)
  acknowledge(tag)
end
