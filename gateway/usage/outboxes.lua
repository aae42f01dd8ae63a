-- Acknowledges entries of outboxes, trims what is acknowledged, and returns what is left.
--
-- KEYS  outboxes
-- ARGV  the consumer group, '1' to trim, then for each outbox its entry ids with spaces between them
-- Returns for each outbox with entries, or with ids that are not acknowledged: its place in KEYS, the oldest entry that is
--         not acknowledged or '', the last entry that was delivered, the number of entries, and how many ids are delivered
--         and not acknowledged. Their entries may be trimmed. A group that is missing is created for entries.

local group, trim = ARGV[1], ARGV[2] == '1'

local function last_delivered(outbox)
  for _, found in ipairs(redis.call('XINFO', 'GROUPS', outbox)) do
    local facts = {}
    for at = 1, #found, 2 do facts[found[at]] = found[at + 1] end
    if facts['name'] == group then return facts['last-delivered-id'] end
  end
  redis.call('XGROUP', 'CREATE', outbox, group, '0')
  return '0-0'
end

local function pending_in(outbox)
  local found = redis.pcall('XPENDING', outbox, group)
  return found['err'] and { 0 } or found -- there is no such outbox or group
end

local left = {}
for number, outbox in ipairs(KEYS) do
  local ids = {}
  for id in string.gmatch(ARGV[2 + number], '[^ ]+') do ids[#ids + 1] = id end
  if #ids > 0 then redis.call('XACK', outbox, group, unpack(ids)) end
  local pending = pending_in(outbox)
  if redis.call('XLEN', outbox) > 0 then
    local delivered = last_delivered(outbox)
    local oldest = pending[1] > 0 and pending[2]
    if not oldest then
      local undelivered = redis.call('XRANGE', outbox, '(' .. delivered, '+', 'COUNT', 1)
      oldest = undelivered[1] and undelivered[1][1]
    end
    if trim and oldest then redis.call('XTRIM', outbox, 'MINID', oldest) end
    if trim and not oldest then redis.call('XTRIM', outbox, 'MAXLEN', 0) end
    left[#left + 1] = { number, oldest or '', delivered, redis.call('XLEN', outbox), pending[1] }
  elseif pending[1] > 0 then
    left[#left + 1] = { number, '', last_delivered(outbox), 0, pending[1] }
  end
end
return left
