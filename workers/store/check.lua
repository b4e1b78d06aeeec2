-- Whether a request could still commit: asked before an act whose undoing would cost a running session.
-- KEYS  1 result key  2 epoch      ARGV  1 epoch of this writer  2 deadline in ms, 0 for none
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('GET', KEYS[1])
if stored then return {'duplicate', stored, now} end
local epoch = redis.call('GET', KEYS[2])
if epoch ~= ARGV[1] then return {'fenced', epoch or '', now} end
if tonumber(ARGV[2]) > 0 and now > tonumber(ARGV[2]) then return {'late', '', now} end
return {'open', '', now}
