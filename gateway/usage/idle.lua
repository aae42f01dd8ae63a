-- KEYS  outboxes
-- Returns the place in KEYS and the last entry of each outbox that is empty

local found = {}
for place, outbox in ipairs(KEYS) do
  if redis.call('EXISTS', outbox) == 1 and redis.call('XLEN', outbox) == 0 then
    local facts = redis.call('XINFO', 'STREAM', outbox)
    for at = 1, #facts, 2 do
      if facts[at] == 'last-generated-id' then found[#found + 1] = { place, facts[at + 1] } end
    end
  end
end
return found
