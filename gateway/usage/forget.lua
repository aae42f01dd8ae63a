-- Deletes the facts about the outbox of a tenant that left, unless the tenant is back.
--
-- KEYS  tenants, leaving, then the hashes by tenant
-- ARGV  the tenant
-- Returns whether they were deleted

redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 1 then return 0 end
for place = 3, #KEYS do redis.call('HDEL', KEYS[place], ARGV[1]) end
return 1
