-- The start of a writer: from here on every earlier one of this gateway is refused.
-- KEYS  1 epoch  2 gateway      ARGV  1 token of the new writer
-- Returns {its epoch, sequence, the epoch before, the writer before}
local before = redis.call('GET', KEYS[1]) or '0'
local epoch = redis.call('INCRBY', KEYS[1], 1)
local fields = redis.call('HMGET', KEYS[2], 'writer', 'seq')
redis.call('HSET', KEYS[2], 'writer', ARGV[1])
return {epoch, tonumber(fields[2] or '0') or 0, tonumber(before) or 0, fields[1] or ''}
