-- Returns the lengths of outboxes.
--
-- KEYS  outboxes
-- Returns for each outbox with entries: its index in KEYS, and the number of entries

local lengths = {}
for index, outbox in ipairs(KEYS) do
  local length = redis.call('XLEN', outbox)
  if length > 0 then lengths[#lengths + 1] = { index, length } end
end
return lengths
