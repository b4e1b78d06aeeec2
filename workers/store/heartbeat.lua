-- Store the writer's facts, heartbeat, phase and measurements; refused to a writer that has been replaced.
-- KEYS  1 gateway  2 epoch; with measurements  3 their hash  4 interactive queue  5 bulk queue
-- ARGV  1 epoch of this writer  2 its token  3 the sequence as it knows it  4 'brief': where the gateway's hash has the
--       token of this writer, the epoch is not compared  then pairs field, value; with measurements, these at last
-- Returns {current | behind | fenced, the gateway's state}; writes only if it is current
local current, state
if ARGV[4] == 'brief' then
  local fields = redis.call('HMGET', KEYS[1], 'writer', 'seq', 'state')
  state = fields[3]
  if fields[1] == ARGV[2] and (tonumber(fields[2] or '0') or 0) >= tonumber(ARGV[3]) then current = 'current' end
end
if not current then
  local seq, newest
  current, seq, newest, state = standing(KEYS[2], KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]))
end
if current ~= 'current' then return {current, state or ''} end
local time = redis.call('TIME')
local fields = {'heartbeat', time[1] * 1000 + math.floor(time[2] / 1000)}
if KEYS[3] then
  redis.call('HSET', KEYS[3], 'writer', table.remove(ARGV))
  -- When the oldest message that waits was sent; 0 where none waits, or it does not say.
  for number, field in ipairs({'oldest_sent_at', 'oldest_bulk_sent_at'}) do
    local oldest = redis.pcall('LINDEX', KEYS[3 + number], -1)
    local sent_at = type(oldest) == 'string' and string.match(oldest, '"sent_at": ?(%d+)')
    fields[#fields + 1] = field
    fields[#fields + 1] = sent_at or 0
  end
end
for number = 5, #ARGV do fields[#fields + 1] = ARGV[number] end
redis.call('HSET', KEYS[1], unpack(fields))
return {current, state or ''}
