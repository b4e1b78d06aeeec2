-- Begins every procedure of a writer: whether Redis is what the writer knows it to be (workers.store.sequence).
-- Returns that, the sequence, the newest epoch where another writer has started, and the gateway's state. That it is:
-- 'current'; 'behind': it has lost commits of the writer, or its start; 'fenced': another writer has started since.
local function standing(epoch_key, gateway_key, epoch, writer, known)
  local stored = redis.call('GET', epoch_key)
  local newest = tonumber(stored or '0')
  local fields = redis.call('HMGET', gateway_key, 'writer', 'seq', 'state')
  local seq = tonumber(fields[2] or '0') or 0
  if not newest or newest > epoch or (newest == epoch and fields[1] and fields[1] ~= writer) then
    return 'fenced', seq, stored or '', fields[3]
  end
  if newest < epoch or not fields[1] or seq < known then return 'behind', seq, '', fields[3] end
  return 'current', seq, '', fields[3]
end
