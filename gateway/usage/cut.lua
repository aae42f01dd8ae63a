#!lua flags=allow-oom
-- Deletes the oldest entries of an outbox that holds too many, at most some in one call. Counts the receipts that no worker
-- had taken as lost: here, since a reply may be lost. It also runs where Redis has reached maxmemory.
--
-- KEYS  outbox, the hash of counts
-- ARGV  the consumer group, how many entries may stay, how many to delete at most
-- Returns how many were deleted

local too_many = math.min(redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2]), tonumber(ARGV[3]))
if too_many <= 0 then return 0 end

local function part(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local taken_ms, taken_seq = 0, 0
for _, found in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local facts = {}
  for at = 1, #found, 2 do facts[found[at]] = found[at + 1] end
  if facts['name'] == ARGV[1] then taken_ms, taken_seq = part(facts['last-delivered-id']) end
end

local lost = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', too_many)) do
  local ms, seq = part(entry[1])
  local taken = ms < taken_ms or (ms == taken_ms and seq <= taken_seq)
  if not taken and entry[2][1] ~= 'comparison' then lost = lost + 1 end
end
if lost > 0 then redis.call('HINCRBY', KEYS[2], 'lost', lost) end
redis.call('XTRIM', KEYS[1], 'MAXLEN', redis.call('XLEN', KEYS[1]) - too_many)
return too_many
