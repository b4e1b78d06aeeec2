-- The commit: the one place where a request's outcome becomes true. All or nothing; asking twice is harmless.
-- KEYS  1 result key (= channel)  2 epoch  3 peers  4 addresses
-- ARGV  1 epoch of this writer          2 deadline in ms on this server's clock, 0 for none
--       3 the result                    4 its TTL in seconds     5 the result to store if the deadline has passed
--       6 public key, '' for an outcome that changes nothing
--       7 '1' if the plan was made on a stored record, else '0'  8 the record to store, '' to delete it
--       9 how many prefixes are given up, then these, then those that are taken
-- Returns {verdict, stored or detail}: committed | duplicate | fenced | expired | stale
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('GET', KEYS[1])
if stored then return {'duplicate', stored, now} end
local epoch = redis.call('GET', KEYS[2])
if epoch ~= ARGV[1] then return {'fenced', epoch or '', now} end
local key = ARGV[6]
local late = tonumber(ARGV[2]) > 0 and now > tonumber(ARGV[2])
if late then
  redis.call('SET', KEYS[1], ARGV[5], 'EX', ARGV[4])
  redis.call('PUBLISH', KEYS[1], ARGV[5])
  return {'expired', ARGV[5], now}
end
if key ~= '' then
  if redis.call('HEXISTS', KEYS[3], key) ~= tonumber(ARGV[7]) then return {'stale', 'record', now} end
  local taken = 10 + tonumber(ARGV[9])
  for i = taken, #ARGV do
    local owner = redis.call('HGET', KEYS[4], ARGV[i])
    if owner and owner ~= key then return {'stale', 'address', now} end
  end
  for i = 10, taken - 1 do
    if redis.call('HGET', KEYS[4], ARGV[i]) == key then redis.call('HDEL', KEYS[4], ARGV[i]) end
  end
  for i = taken, #ARGV do redis.call('HSET', KEYS[4], ARGV[i], key) end
  if ARGV[8] == '' then redis.call('HDEL', KEYS[3], key) else redis.call('HSET', KEYS[3], key, ARGV[8]) end
end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
redis.call('PUBLISH', KEYS[1], ARGV[3])
return {'committed', '', now}
