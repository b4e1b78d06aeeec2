-- The commit: the one place where a request's outcome becomes true. All or nothing; asking twice is harmless.
-- KEYS  1 result key (= channel)  2 epoch  3 peers  4 addresses  5 gateway
--       6 messages taken and not acknowledged, and 7 their index
--       8 only for a request that counts in a share of the lane: where it counts
-- ARGV  1 epoch of this writer          2 deadline in ms on this server's clock, 0 for none
--       3 the result                    4 its least TTL in s     5 the result to store if the deadline has passed
--       6 the changes, a JSON list of {key, before, kept, record, gone, taken}:
--         key     public key
--         before  whether the plan was made on a stored record
--         kept    true: nothing to change, but the answer says so, and so it must be true
--         record  the record to store; absent: delete it
--         gone    prefixes given up; taken: prefixes that are taken
--       7 '1' if the gateway must not be draining
--       8 tag of the message that asked for it, which is acknowledged in the same step; '' for none
--       9 with KEYS 8: the request's id
-- Returns {verdict, stored or detail, server time in ms}: committed | duplicate | fenced | expired | stale | draining
-- Whoever asks for many listens on one channel for all of them: that of GATEWAY.REPLY for the ids GATEWAY.REPLY_N.
local function publish(key, record)
  redis.call('PUBLISH', key, record)
  local reply, token = string.match(key, '^(.+%.(%x+))_%d+$')
  if reply and #token == 32 then redis.call('PUBLISH', reply, record) end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function leave_share()
  if KEYS[8] then redis.call('ZREM', KEYS[8], ARGV[9]) end
end
local function acknowledge()
  if ARGV[8] ~= '' then
    redis.call('HDEL', KEYS[6], ARGV[8])
    redis.call('ZREM', KEYS[7], ARGV[8])
  end
end
local stored = redis.call('GET', KEYS[1])
if stored then
  if redis.call('GET', KEYS[2]) == ARGV[1] then leave_share() end
  acknowledge()
  return {'duplicate', stored, now}
end
local epoch = redis.call('GET', KEYS[2])
if epoch ~= ARGV[1] then return {'fenced', epoch or '', now} end
if tonumber(ARGV[2]) > 0 and now > tonumber(ARGV[2]) then
  redis.call('SET', KEYS[1], ARGV[5], 'EX', ARGV[4])
  publish(KEYS[1], ARGV[5])
  leave_share()
  acknowledge()
  return {'expired', ARGV[5], now}
end
if ARGV[7] == '1' and redis.call('HGET', KEYS[5], 'state') == 'draining' then return {'draining', '', now} end
local changes = cjson.decode(ARGV[6])
for _, change in ipairs(changes) do
  if (redis.call('HEXISTS', KEYS[3], change.key) == 1) ~= change.before then return {'stale', 'record', now} end
  for _, prefix in ipairs(change.taken) do
    local owner = redis.call('HGET', KEYS[4], prefix)
    if owner and owner ~= change.key then return {'stale', 'address', now} end
  end
end
for _, change in ipairs(changes) do
  for _, prefix in ipairs(change.gone) do
    if redis.call('HGET', KEYS[4], prefix) == change.key then redis.call('HDEL', KEYS[4], prefix) end
  end
  for _, prefix in ipairs(change.taken) do redis.call('HSET', KEYS[4], prefix, change.key) end
  if change.record then
    redis.call('HSET', KEYS[3], change.key, change.record)
  elseif not change.kept then
    redis.call('HDEL', KEYS[3], change.key)
  end
end
-- As long as the request may be delivered again, its outcome is known; a deadline is at most a day ahead.
local left = math.ceil((tonumber(ARGV[2]) - now) / 1000) + 60
redis.call('SET', KEYS[1], ARGV[3], 'EX', math.max(tonumber(ARGV[4]), math.min(left, 90000)))
publish(KEYS[1], ARGV[3])
leave_share()
acknowledge()
return {'committed', '', now}
