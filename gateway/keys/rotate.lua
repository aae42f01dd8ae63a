-- Replaces an old key by a new key. The new key gets the id of the old key. The old key gets another id, and stays valid
-- for its grace period. Running it twice with the same new key is safe, so that a caller can retry after a lost reply.
--
-- ARGV  SHA-256 of the new key, tenant, id, terms of the new key, SHA-256 of the old key, grace period,
--       time of expiry of the new key or 0, time until expiry or 0, word, limit of keys, actor
-- Returns {'ok', terms, dates, then SHA-256, terms and dates of the old key}, or {error}: changed, revoked, expired,
--       replaced, full, past

local new_sha, tenant, id, old_sha, word = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[9]

local function both_keys()
  local reply = reply_with('ok', new_sha)
  reply[4], reply[5], reply[6] = old_sha, redis.call('HGET', terms, old_sha), redis.call('HGET', dates, old_sha)
  return reply
end

local holder = redis.call('HGET', names, tenant .. '/' .. id)
if holder == new_sha then
  return both_keys()
end
if holder ~= old_sha then
  return {'changed'}
end
local old = read_dates(old_sha)
if old.revoked > 0 then
  return {'revoked'}
end
if old.expires > 0 and old.expires <= now then
  return {'expired'}
end
if old.replaced == '1' then
  return {'replaced'}
end
delete_ended()
if redis.call('HLEN', terms) >= tonumber(ARGV[10]) then
  return {'full'}
end
local expires = expiry(tonumber(ARGV[7]), tonumber(ARGV[8]))
if expires == 0 then
  expires = old.expires
elseif expires <= now then
  return {'past'}
end

local before, number = audit_json(old_sha, old), 1
while redis.call('HEXISTS', names, tenant .. '/' .. id .. '.' .. number) == 1 do
  number = number + 1
end
local grace_ends = now + tonumber(ARGV[6])
old.id, old.replaced = id .. '.' .. number, '1'
if old.expires == 0 or grace_ends < old.expires then
  old.expires = grace_ends
end
local new = {tenant = tenant, id = id, created = now, expires = expires, revoked = 0, replaces = old.id, replaced = '0'}
redis.call('HSET', terms, new_sha, ARGV[4])
store(old_sha, old, word)
store(new_sha, new, word)
write_audit(ARGV[11], 'key.rotate', new, before, audit_json(new_sha, new))
return both_keys()
