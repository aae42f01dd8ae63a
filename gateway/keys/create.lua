-- A new key. To run it twice with the same key does no harm: a reply can be lost.
--
-- ARGV  SHA-256 of the key, tenant, id, terms, when it expires or 0, after how long or 0, word, most keys, actor
-- Returns {'ok', terms, dates}, or {what is wrong}: taken, full, past

local sha, word, actor = ARGV[1], ARGV[7], ARGV[9]
local key = {tenant = ARGV[2], id = ARGV[3], created = now, expires = ending(tonumber(ARGV[5]), tonumber(ARGV[6])),
             revoked = 0, replaces = '', replaced = '0'}

local holder = redis.call('HGET', names, key.tenant .. '/' .. key.id)
if holder == sha then
  return answer('ok', sha)
end
forget_ended()
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
keep(sha, key, word)
tell(actor, 'key.create', key, '', shown(sha, key))
return answer('ok', sha)
