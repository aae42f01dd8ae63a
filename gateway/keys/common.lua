-- What comes before each script that changes keys. Times are microseconds of Redis TIME; no process clock is trusted.
--
-- KEYS  terms, dates, names, changes, heads, state, ends, used, audit (KeyringKeys)

local terms, dates, names, changes, heads, state, ends, used, audit = unpack(KEYS)
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- How far back a process may be and still read only what changed; how long a key that ended stays to be seen; how many
-- such are forgotten at a time.
local most_heads, keep_ended, most_forgotten, most_audit = 1000, 30 * 86400 * 1000000, 100, 10000

local function whole(number)
  return string.format('%.0f', number)
end

-- Dates are one line, tenant|id|created|expires|revoked|replaces|1 if replaced, where 0 and an empty word are none.
local function read_dates(sha)
  local tenant, id, created, expires, revoked, replaces, replaced = string.match(
    redis.call('HGET', dates, sha), '^(.-)|(.-)|(.-)|(.-)|(.-)|(.-)|(.-)$')
  return {tenant = tenant, id = id, created = tonumber(created), expires = tonumber(expires),
          revoked = tonumber(revoked), replaces = replaces, replaced = replaced}
end

-- Keep it, and let every process read it: as the next version, with a word that no other history has at its place.
local function keep(sha, key, word)
  redis.call('HSET', dates, sha, table.concat({key.tenant, key.id, whole(key.created), whole(key.expires),
    whole(key.revoked), key.replaces, key.replaced}, '|'))
  redis.call('HSET', names, key.tenant .. '/' .. key.id, sha)
  local ends_at = key.expires
  if key.revoked > 0 and (ends_at == 0 or key.revoked < ends_at) then
    ends_at = key.revoked
  end
  if ends_at > 0 then
    redis.call('ZADD', ends, whole(ends_at), sha)
  end
  local version = redis.call('HINCRBY', state, 'version', 1)
  redis.call('HSET', state, 'word', word)
  redis.call('HSET', heads, version, word)
  redis.call('HDEL', heads, version - most_heads)
  redis.call('ZADD', changes, version, sha)
end

-- For the audit trail: what a key may do, and until when, as JSON.
local function shown(sha, key)
  local expires = key.expires == 0 and 'null' or whole(math.floor(key.expires / 1000000))
  return string.sub(redis.call('HGET', terms, sha), 1, -2) .. ',"id":"' .. key.id .. '","expires":' .. expires .. '}'
end

local function tell(actor, action, key, before, after)
  redis.call('XADD', audit, 'MAXLEN', '~', most_audit, '*', 'actor', actor, 'action', action,
    'tenant', key.tenant, 'subject', key.id, 'before', before, 'after', after)
end

local function forget_ended()
  for _, sha in ipairs(redis.call('ZRANGE', ends, '-inf', whole(now - keep_ended), 'BYSCORE',
                                  'LIMIT', 0, most_forgotten)) do
    local key = read_dates(sha)
    redis.call('HDEL', terms, sha)
    redis.call('HDEL', dates, sha)
    redis.call('HDEL', names, key.tenant .. '/' .. key.id)
    redis.call('ZREM', changes, sha)
    redis.call('ZREM', ends, sha)
    redis.call('ZREM', used, sha)
  end
end

-- When a key is to end, of the moment and the time from now that were asked for, each 0 if it was not.
local function ending(moment, lasting)
  return lasting > 0 and now + lasting or moment
end

local function answer(said, sha)
  return {said, redis.call('HGET', terms, sha), redis.call('HGET', dates, sha)}
end
