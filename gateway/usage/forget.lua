-- Removes a tenant from the leaving tenants, after its outbox was deleted or the tenant was registered again.
--
-- KEYS  tenants, leaving
-- ARGV  tenant
-- Returns 1 if the tenant is not registered, else 0

redis.call('ZREM', KEYS[2], ARGV[1])
return 1 - redis.call('SISMEMBER', KEYS[1], ARGV[1])
