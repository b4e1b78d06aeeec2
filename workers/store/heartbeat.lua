-- Tell what the writer is, that it lives, and what it does; refused to a writer that has been replaced.
-- KEYS  1 gateway  2 epoch
-- ARGV  1 epoch of this writer  2 its token  3 the sequence as it knows it  then pairs field, value
-- Returns current | behind | fenced; only the first has told anything
local current = standing(KEYS[2], KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]))
if current ~= 'current' then return current end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'heartbeat', time[1] * 1000 + math.floor(time[2] / 1000), unpack(ARGV, 4))
return current
