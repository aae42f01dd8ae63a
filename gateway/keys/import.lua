-- Stores a key of an export. Running it twice is safe.
--
-- ARGV  SHA-256 of the key, tenant, id, terms, times of creation, expiry and revocation, id of the key that it replaced,
--       1 if it was replaced, time of the last use or 0, word, limit of keys
-- Returns 'ok', or an error: taken, full

local sha, word = ARGV[1], ARGV[11]
local key = {tenant = ARGV[2], id = ARGV[3], created = tonumber(ARGV[5]), expires = tonumber(ARGV[6]),
             revoked = tonumber(ARGV[7]), replaces = ARGV[8], replaced = ARGV[9]}

local holder = redis.call('HGET', names, key.tenant .. '/' .. key.id)
if holder == sha then
  return 'ok'
end
if holder or redis.call('HEXISTS', terms, sha) == 1 then
  return 'taken'
end
if redis.call('HLEN', terms) >= tonumber(ARGV[12]) then
  return 'full'
end
redis.call('HSET', terms, sha, ARGV[4])
store(sha, key, word)
if ARGV[10] ~= '0' then
  redis.call('ZADD', used, ARGV[10], sha)
end
return 'ok'
