-- The commit: the one place where requests' outcomes become true. For each request all or nothing; asking twice is
-- harmless. Many requests are committed in one step and one sync, each with a verdict of its own.
-- KEYS  1 epoch  2 peers  3 addresses  4 gateway  5 messages taken and not acknowledged  6 their index
--       then two for each request: its result key (= channel), and where it counts in a share of the lane, or the
--       result key again
-- ARGV  1 epoch of this writer  2 its token  3 the sequence as it knows it  4 a result's least TTL in s
--       then seven for each request:
--         deadline   in ms on this server's clock, 0 for none
--         result
--         late       the result to store if the deadline has passed
--         changes    a JSON list of {key, before, kept, record, gone, taken}:
--           key      public key
--           before   whether the plan was made on a stored record
--           kept     true: nothing changes, but the peer must still be as the answer says
--           record   the record to store; absent: delete it
--           gone     prefixes given up; taken: prefixes that are taken
--         creates    '1' if the gateway must not be draining
--         tag        of the message that asked for it, which is acknowledged in the same step; '' for none
--         id         of the request
-- Returns {server time in ms, sequence, then for each request {verdict, stored or detail}}: committed | duplicate |
-- behind | fenced | expired | stale | draining; 'failed': an error in one of many requests
local current, seq, newest = standing(KEYS[1], KEYS[4], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]))
local function commit(key, share, deadline, result, late, changes, creates, tag, id)
  -- Nothing is decided on a Redis that is behind: its lost commits are repeated first.
  if current == 'behind' then return {'behind', ''} end
  local stored = redis.call('GET', key)
  if stored then
    if current == 'current' then leave_share(key, share, id) end
    acknowledge(tag)
    return {'duplicate', stored}
  end
  if current == 'fenced' then return {'fenced', newest} end
  if deadline > 0 and now > deadline then
    settle(key, share, tag, id, late, ARGV[4])
    return {'expired', late}
  end
  if creates == '1' and redis.call('HGET', KEYS[4], 'state') == 'draining' then return {'draining', ''} end
  changes = cjson.decode(changes)
  local peers = {}
  for at, change in ipairs(changes) do peers[at] = change.key end
  for at, record in ipairs(values(KEYS[2], peers)) do
    if (record ~= false) ~= changes[at].before then return {'stale', 'record'} end
  end
  local taken, keys = prefixes_of(changes, 'taken')
  for at, owner in ipairs(values(KEYS[3], taken)) do
    if owner and owner ~= keys[at] then return {'stale', 'address'} end
  end
  apply(changes)
  settle(key, share, tag, id, result, life(deadline, ARGV[4]))
  return {'committed', ''}
end
local answers, made, alone = {now, seq}, 0, #KEYS == 8
for number = 0, (#KEYS - 6) / 2 - 1 do
  local key, at = 7 + number * 2, 5 + number * 7
  local function attempt()
    return commit(KEYS[key], KEYS[key + 1], tonumber(ARGV[at]), unpack(ARGV, at + 1, at + 6))
  end
  local answer
  if alone then
    answer = attempt()
  else
    -- A key of another type, or a right that this user lacks, fails this request alone.
    local ok, verdict = pcall(attempt)
    answer = ok and verdict or {'failed', ''}
  end
  if answer[1] == 'committed' or answer[1] == 'expired' then made = made + 1 end
  answers[#answers + 1] = answer
end
if made > 0 then
  answers[2] = seq + made
  redis.call('HSET', KEYS[4], 'seq', string.format('%.0f', seq + made))
end
return answers
