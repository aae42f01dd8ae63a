-- Replaces the audit trail by a merged trail, unless the trail has changed.
--
-- KEYS  audit, the merged trail
-- ARGV  id of the newest entry when the trail was read, or an empty string
-- Returns 1, or 0 if the trail has changed

local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if (newest and newest[1] or '') ~= ARGV[1] then
  return 0
end
redis.call('PERSIST', KEYS[2])
redis.call('RENAME', KEYS[2], KEYS[1])
return 1
