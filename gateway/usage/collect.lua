#!lua flags=allow-oom
-- Adds the numbers of lost receipts of tenants to the total. A repeated call adds nothing, so that no receipt counts
-- twice after a lost reply. The script also runs if Redis has reached maxmemory.
--
-- KEYS  hash of totals, hash of the number of each tenant that the total contains
-- ARGV  for each tenant: its name, and the number of its lost receipts since the beginning

for index = 1, #ARGV, 2 do
  local tenant, lost = ARGV[index], tonumber(ARGV[index + 1])
  local before = tonumber(redis.call('HGET', KEYS[2], tenant) or '0')
  if lost < before then before = 0 end -- the node of the tenant lost its count
  if lost > before then
    redis.call('HINCRBY', KEYS[1], 'lost', lost - before)
    redis.call('HSET', KEYS[2], tenant, lost)
  end
end
