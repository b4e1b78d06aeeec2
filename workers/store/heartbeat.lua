-- Tell that the writer lives, and what it does; refused to a writer that has been replaced.
-- KEYS  1 gateway  2 epoch      ARGV  1 epoch of this writer, then pairs field, value
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'heartbeat', time[1] * 1000 + math.floor(time[2] / 1000), unpack(ARGV, 2))
return 1
