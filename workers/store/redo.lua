-- Make true again, in their order, commits that Redis had confirmed and lost; the writer's start too, if that is lost.
-- They were in time and allowed when they were made, so neither deadline nor draining is asked about again; an outcome is
-- kept as long as at first.
-- KEYS  as for commit
-- ARGV  1 epoch of this writer  2 its token  3 the sequence after these commits  4 a result's least TTL in s
--       5 removals among the commits before these that were found cancelled
--       then five for each request: result, changes, tag, id, deadline (0 for none)
-- Returns {'fenced'}, or {'current', then for each request whether it is true: 'made', 'known', 'cancelled', or 'lost':
-- what it was made on is not here}
local current, seq = standing(KEYS[1], KEYS[4], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]))
if current == 'fenced' then return {'fenced'} end
-- Removals whose callers have cancelled them meanwhile, by key and by prefix. They are made all the same if a peer of
-- which a caller may have heard since has one of their addresses, or their key: it was confirmed last.
local cancelled = {}
local function note_cancelled(changes)
  for _, change in ipairs(changes) do
    if not change.record and not change.kept then
      cancelled[change.key] = change
      for _, prefix in ipairs(change.gone) do cancelled[prefix] = change end
    end
  end
end
-- The addresses in a record; nil where there is none that can be read.
local function addresses_in(record)
  local ok, peer = pcall(cjson.decode, record or '')
  return ok and type(peer) == 'table' and type(peer.allowed_ips) == 'table' and peer.allowed_ips or nil
end
-- The prefixes that a change gives up and takes follow from the writer's earlier record; Redis may hold an older one.
local function as_of_here(change)
  local stored = addresses_in(redis.call('HGET', KEYS[2], change.key))
  if change.kept or not stored then return end
  change.taken = addresses_in(change.record) or {}
  local stays = {}
  for _, prefix in ipairs(change.taken) do stays[prefix] = true end
  change.gone = {}
  for _, prefix in ipairs(stored) do
    if not stays[prefix] then change.gone[#change.gone + 1] = prefix end
  end
end
-- A create that was cancelled was made where its peer was not: one that Redis remembers had been deleted before.
local function forget_older(changes)
  for _, change in ipairs(changes) do
    if change.record and not change.before then
      local removal = {key = change.key, gone = {}, taken = {}}
      as_of_here(removal)
      apply({removal})
    end
  end
end
local function redo(key, share, result, changes, tag, id, deadline)
  local stored = redis.call('GET', key)
  -- A request that waited past its deadline is answered when taken, before its lost outcome is noticed.
  local late = 'its deadline had passed before the gateway could commit it'
  if stored and (stored == result or not string.find(stored, late, 1, true)) then
    leave_share(key, share, id)
    acknowledge(tag)
    if stored == result then return 'known' end
    -- Something else: its caller had not heard of it, and has cancelled it meanwhile.
    changes = cjson.decode(changes)
    note_cancelled(changes)
    forget_older(changes)
    return 'cancelled'
  end
  changes = cjson.decode(changes)
  local removals = {}
  for _, change in ipairs(changes) do
    if change.kept and (redis.call('HEXISTS', KEYS[2], change.key) == 1) ~= change.before then return 'lost' end
    as_of_here(change)
    if change.record and not change.before then removals[#removals + 1] = cancelled[change.key] end
    for _, prefix in ipairs(change.taken) do
      local owner, removal = redis.call('HGET', KEYS[3], prefix), cancelled[prefix]
      if owner and owner ~= change.key then
        if not removal or removal.key ~= owner then return 'lost' end
        removals[#removals + 1] = removal
      end
    end
  end
  apply(removals)
  apply(changes)
  settle(key, share, tag, id, result, life(tonumber(deadline), ARGV[4]))
  return 'made'
end
local newest = tonumber(redis.call('GET', KEYS[1]) or '0')
if newest < tonumber(ARGV[1]) then redis.call('INCRBY', KEYS[1], tonumber(ARGV[1]) - newest) end
local answers = {'current'}
note_cancelled(cjson.decode(ARGV[5]))
for number = 0, (#KEYS - 6) / 2 - 1 do
  local key, at = 7 + number * 2, 6 + number * 5
  local ok, answer = pcall(redo, KEYS[key], KEYS[key + 1], unpack(ARGV, at, at + 4))
  answers[#answers + 1] = ok and answer or 'lost'
end
redis.call('HSET', KEYS[4], 'writer', ARGV[2])
if seq < tonumber(ARGV[3]) then redis.call('HSET', KEYS[4], 'seq', ARGV[3]) end
return answers
