-- Begins the procedures that make outcomes true: commit and redo, which have the first six KEYS in common.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- One command for many fields costs a fraction of as many commands, here and in the append-only file. Lua passes a
-- few thousand arguments at most.
local AT_ONCE = 1000
local function pages(command, key, list)
  for first = 1, #list, AT_ONCE do
    redis.call(command, key, unpack(list, first, math.min(first + AT_ONCE - 1, #list)))
  end
end
local function values(key, fields)
  local found = {}
  for first = 1, #fields, AT_ONCE do
    local page = redis.call('HMGET', key, unpack(fields, first, math.min(first + AT_ONCE - 1, #fields)))
    for at = 1, #page do found[#found + 1] = page[at] end
  end
  return found
end
-- The prefixes that changes take or give up, and for each the key of its change.
local function prefixes_of(changes, name)
  local prefixes, keys = {}, {}
  for _, change in ipairs(changes) do
    for _, prefix in ipairs(change[name]) do
      prefixes[#prefixes + 1], keys[#keys + 1] = prefix, change.key
    end
  end
  return prefixes, keys
end
local function apply(changes)
  local gone, keys = prefixes_of(changes, 'gone')
  local freed = {}
  for at, owner in ipairs(values(KEYS[3], gone)) do
    if owner == keys[at] then freed[#freed + 1] = gone[at] end
  end
  pages('HDEL', KEYS[3], freed)
  local addresses, records, removed = {}, {}, {}
  for _, change in ipairs(changes) do
    for _, prefix in ipairs(change.taken) do
      addresses[#addresses + 1], addresses[#addresses + 2] = prefix, change.key
    end
    if change.record then
      records[#records + 1], records[#records + 2] = change.key, change.record
    elseif not change.kept then
      removed[#removed + 1] = change.key
    end
  end
  pages('HSET', KEYS[3], addresses)
  pages('HSET', KEYS[2], records)
  pages('HDEL', KEYS[2], removed)
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
-- A caller of many requests listens on one channel for all: that of GATEWAY.REPLY for the ids GATEWAY.REPLY_N.
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
