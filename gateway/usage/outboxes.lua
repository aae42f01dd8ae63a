-- Acknowledges entries of outboxes, trims acknowledged entries, and returns the state of the outboxes.
--
-- KEYS  outboxes
-- ARGV  consumer group, then for each outbox its entry ids, separated by spaces
-- Returns for each outbox with entries or pending ids: its index in KEYS, the id of the oldest unacknowledged entry or '',
--         the number of entries, the number of pending ids (their entries may have been trimmed). Creates a missing
--         group if the outbox has entries.

local group = ARGV[1]

local function last_delivered(outbox)
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', outbox)) do
    local fields = {}
    for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
    if fields['name'] == group then return fields['last-delivered-id'] end
  end
  redis.call('XGROUP', 'CREATE', outbox, group, '0')
  return '0-0'
end

local function pending_in(outbox)
  local reply = redis.pcall('XPENDING', outbox, group)
  return reply['err'] and { 0 } or reply -- the outbox or the group does not exist
end

local states = {}
for index, outbox in ipairs(KEYS) do
  local ids = {}
  for id in string.gmatch(ARGV[1 + index], '[^ ]+') do ids[#ids + 1] = id end
  if #ids > 0 then redis.call('XACK', outbox, group, unpack(ids)) end
  local pending = pending_in(outbox)
  if redis.call('XLEN', outbox) > 0 then
    local delivered = last_delivered(outbox)
    local oldest = pending[1] > 0 and pending[2]
    if not oldest then
      local undelivered = redis.call('XRANGE', outbox, '(' .. delivered, '+', 'COUNT', 1)
      oldest = undelivered[1] and undelivered[1][1]
    end
    if oldest then redis.call('XTRIM', outbox, 'MINID', oldest) else redis.call('XTRIM', outbox, 'MAXLEN', 0) end
    states[#states + 1] = { index, oldest or '', redis.call('XLEN', outbox), pending[1] }
  elseif pending[1] > 0 then
    states[#states + 1] = { index, '', 0, pending[1] }
  end
end
return states
