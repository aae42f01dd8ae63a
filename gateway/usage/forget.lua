-- Deletes the stored state of a removed tenant's outbox, unless the tenant is registered again.
--
-- KEYS  tenants, leaving, then hashes with a field for each tenant
-- ARGV  tenant
-- Returns 1 if the state was deleted, else 0

redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 1 then return 0 end
for i = 3, #KEYS do redis.call('HDEL', KEYS[i], ARGV[1]) end
return 1
