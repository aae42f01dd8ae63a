-- Finds empty outboxes.
--
-- KEYS  outboxes
-- Returns for each empty outbox: its index in KEYS, and the id of its last entry

local empty = {}
for index, outbox in ipairs(KEYS) do
  if redis.call('EXISTS', outbox) == 1 and redis.call('XLEN', outbox) == 0 then
    local fields = redis.call('XINFO', 'STREAM', outbox)
    for i = 1, #fields, 2 do
      if fields[i] == 'last-generated-id' then empty[#empty + 1] = { index, fields[i + 1] } end
    end
  end
end
return empty
