#!lua flags=allow-oom
-- Deletes the oldest entries of an outbox that exceeds its limit. Adds the deleted receipts that no worker has read to
-- the count of lost receipts; the script counts them itself, because its reply may be lost. It also runs if Redis has
-- reached maxmemory.
--
-- KEYS  outbox, hash of counts
-- ARGV  consumer group, limit of entries, limit of entries to delete in this call
-- Returns the number of deleted entries

local excess = math.min(redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2]), tonumber(ARGV[3]))
if excess <= 0 then return 0 end

local function id_parts(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local read_ms, read_seq = 0, 0
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local fields = {}
  for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
  if fields['name'] == ARGV[1] then read_ms, read_seq = id_parts(fields['last-delivered-id']) end
end

local lost = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', excess)) do
  local ms, seq = id_parts(entry[1])
  local was_read = ms < read_ms or (ms == read_ms and seq <= read_seq)
  local kind = entry[2][1]
  if not was_read and kind ~= 'comparison' and kind ~= 'outcome' then lost = lost + 1 end
end
if lost > 0 then redis.call('HINCRBY', KEYS[2], 'lost', lost) end
redis.call('XTRIM', KEYS[1], 'MAXLEN', redis.call('XLEN', KEYS[1]) - excess)
return excess
