-- Creates a key. Running it twice with the same key is safe, so that a caller can retry after a lost reply.
--
-- ARGV  SHA-256 of the key, tenant, id, terms, time of expiry or 0, time until expiry or 0, word, limit of keys, actor
-- Returns {'ok', terms, dates}, or {error}: taken, full, past

local sha, word, actor = ARGV[1], ARGV[7], ARGV[9]
local key = {tenant = ARGV[2], id = ARGV[3], created = now, expires = expiry(tonumber(ARGV[5]), tonumber(ARGV[6])),
             revoked = 0, replaces = '', replaced = '0'}

local holder = redis.call('HGET', names, key.tenant .. '/' .. key.id)
if holder == sha then
  return reply_with('ok', sha)
end
delete_ended()
if redis.call('HEXISTS', names, key.tenant .. '/' .. key.id) == 1 then
  return {'taken'}
end
if redis.call('HLEN', terms) >= tonumber(ARGV[8]) then
  return {'full'}
end
if key.expires > 0 and key.expires <= now then
  return {'past'}
end
redis.call('HSET', terms, sha, ARGV[4])
store(sha, key, word)
write_audit(actor, 'key.create', key, '', audit_json(sha, key))
return reply_with('ok', sha)
