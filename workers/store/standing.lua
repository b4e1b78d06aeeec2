-- Begins every procedure of a writer: whether Redis is what the writer knows it to be (workers.store.sequence).
-- Returns that, the sequence, the newest epoch where another writer has started, and the gateway's state. That it is:
-- 'current'; 'behind': it has lost commits of the writer, or its start; 'fenced': another writer has started since.
local function standing(epoch_key, gateway_key, epoch, writer, known)
  local stored = redis.call('GET', epoch_key)
  local newest = tonumber(stored or '0')
  local told = redis.call('HMGET', gateway_key, 'writer', 'seq', 'state')
  local seq = tonumber(told[2] or '0') or 0
  if not newest or newest > epoch or (newest == epoch and told[1] and told[1] ~= writer) then
    return 'fenced', seq, stored or '', told[3]
  end
  if newest < epoch or not told[1] or seq < known then return 'behind', seq, '', told[3] end
  return 'current', seq, '', told[3]
end
