-- Revokes a key at once. Running it twice is safe.
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
  store(sha, key, ARGV[3])
  write_audit(ARGV[4], 'key.revoke', key, audit_json(sha, key), '')
end
local reply = reply_with('ok', sha)
reply[4] = sha
return reply
