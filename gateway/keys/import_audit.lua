-- Replaces the audit trail by a merged trail, unless the trail has changed.
--
-- KEYS  audit, a key for the merged trail
-- ARGV  id of the newest entry when the trail was read, or an empty string; entries as MessagePack, each with its id,
--       then its fields and values
-- Returns 1, or 0 if the trail has changed

local audit, merged = unpack(KEYS)
local newest = redis.call('XREVRANGE', audit, '+', '-', 'COUNT', 1)[1]
if (newest and newest[1] or '') ~= ARGV[1] then
  return 0
end
redis.call('DEL', merged)
for _, entry in ipairs(cmsgpack.unpack(ARGV[2])) do
  redis.call('XADD', merged, unpack(entry))
end
redis.call('RENAME', merged, audit)
return 1
