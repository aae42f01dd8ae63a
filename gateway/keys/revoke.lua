-- The end of a key, at once. To revoke it twice does no harm.
--
-- ARGV  tenant, id, word, actor
-- Returns {'ok', terms, dates, SHA-256}, or {'unknown'}

local sha = redis.call('HGET', names, ARGV[1] .. '/' .. ARGV[2])
if not sha then
  return {'unknown'}
end
local key = read_dates(sha)
if key.revoked == 0 then
  key.revoked = now
  keep(sha, key, ARGV[3])
  tell(ARGV[4], 'key.revoke', key, shown(sha, key), '')
end
local said = answer('ok', sha)
said[4] = sha
return said
