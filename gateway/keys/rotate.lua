-- A new key in the place of an old one: it takes the old one's id, and the old one gets another, under which it holds
-- on for its grace time. To run it twice with the same new key does no harm: a reply can be lost.
--
-- ARGV  SHA-256 of the new key, tenant, id, terms of the new key, SHA-256 of the old key, grace time,
--       when the new key expires or 0, after how long or 0, word, most keys, actor
-- Returns {'ok', terms, dates, SHA-256, terms and dates of the old key}, or {what is wrong}: changed, revoked, expired,
--       replaced, full, past

local new_sha, tenant, id, old_sha, word = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[9]

local function told()
  local said = answer('ok', new_sha)
  said[4], said[5], said[6] = old_sha, redis.call('HGET', terms, old_sha), redis.call('HGET', dates, old_sha)
  return said
end

local holder = redis.call('HGET', names, tenant .. '/' .. id)
if holder == new_sha then
  return told()
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
forget_ended()
if redis.call('HLEN', terms) >= tonumber(ARGV[10]) then
  return {'full'}
end
local expires = ending(tonumber(ARGV[7]), tonumber(ARGV[8]))
if expires == 0 then
  expires = old.expires
elseif expires <= now then
  return {'past'}
end

local before, number = shown(old_sha, old), 1
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
keep(old_sha, old, word)
keep(new_sha, new, word)
tell(ARGV[11], 'key.rotate', new, before, shown(new_sha, new))
return told()
