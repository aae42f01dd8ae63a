-- The oldest entries of an outbox that holds too many, as far as one look should go.
--
-- KEYS  outbox
-- ARGV  how many may stay, the last one that is added up, the last one that is archived, how many to look at
-- Returns the id of the last of those that must go, how many they are, how many of them are not added up, and how many
--         not archived

local function part(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function beyond(id, other)
  local ms, seq = part(id)
  local other_ms, other_seq = part(other)
  return ms > other_ms or (ms == other_ms and seq > other_seq)
end

local too_many = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1])
if too_many <= 0 then return { '', 0, 0, 0 } end
local last, unadded, unarchived = '', 0, 0
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(too_many, tonumber(ARGV[4])))
for _, entry in ipairs(oldest) do
  last = entry[1]
  if beyond(last, ARGV[2]) then unadded = unadded + 1 end
  if beyond(last, ARGV[3]) then unarchived = unarchived + 1 end
end
return { last, #oldest, unadded, unarchived }
