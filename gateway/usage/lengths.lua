-- KEYS  outboxes
-- Returns the place in KEYS and the number of entries of each outbox that has any

local found = {}
for place, outbox in ipairs(KEYS) do
  local length = redis.call('XLEN', outbox)
  if length > 0 then found[#found + 1] = { place, length } end
end
return found
