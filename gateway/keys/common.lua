-- Common part of all scripts that change keys. Times are microseconds of Redis TIME, because clocks of processes differ.
--
-- KEYS  terms, dates, names, changes, heads, state, ends, used, audit (KeyringKeys)

local terms, dates, names, changes, heads, state, ends, used, audit = unpack(KEYS)
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Limits: versions of the history (a process further behind reads all keys again), retention of ended keys, ended keys to
-- delete in one call, audit entries.
local max_heads, keep_ended, max_deleted, max_audit = 1000, 30 * 86400 * 1000000, 100, 10000

local function whole(number)
  return string.format('%.0f', number)
end

-- Dates are one line: tenant|id|created|expires|revoked|replaces|1 if replaced. 0 and an empty field mean none.
local function read_dates(sha)
  local tenant, id, created, expires, revoked, replaces, replaced = string.match(
    redis.call('HGET', dates, sha), '^(.-)|(.-)|(.-)|(.-)|(.-)|(.-)|(.-)$')
  return {tenant = tenant, id = id, created = tonumber(created), expires = tonumber(expires),
          revoked = tonumber(revoked), replaces = replaces, replaced = replaced}
end

-- Stores a key as the next version of the history. `word` is a random nonce that distinguishes this history from others.
local function store(sha, key, word)
  redis.call('HSET', dates, sha, table.concat({key.tenant, key.id, whole(key.created), whole(key.expires),
    whole(key.revoked), key.replaces, key.replaced}, '|'))
  redis.call('HSET', names, key.tenant .. '/' .. key.id, sha)
  local ended_at = key.expires
  if key.revoked > 0 and (ended_at == 0 or key.revoked < ended_at) then
    ended_at = key.revoked
  end
  if ended_at > 0 then
    redis.call('ZADD', ends, whole(ended_at), sha)
  end
  local version = redis.call('HINCRBY', state, 'version', 1)
  redis.call('HSET', state, 'word', word)
  redis.call('HSET', heads, version, word)
  redis.call('HDEL', heads, version - max_heads)
  redis.call('ZADD', changes, version, sha)
end

-- Returns terms and expiry of a key as JSON for the audit trail.
local function audit_json(sha, key)
  local expires = key.expires == 0 and 'null' or whole(math.floor(key.expires / 1000000))
  return string.sub(redis.call('HGET', terms, sha), 1, -2) .. ',"id":"' .. key.id .. '","expires":' .. expires .. '}'
end

local function write_audit(actor, action, key, before, after)
  redis.call('XADD', audit, 'MAXLEN', '~', max_audit, '*', 'actor', actor, 'action', action,
    'tenant', key.tenant, 'subject', key.id, 'before', before, 'after', after)
end

local function delete_ended()
  for _, sha in ipairs(redis.call('ZRANGE', ends, '-inf', whole(now - keep_ended), 'BYSCORE',
                                  'LIMIT', 0, max_deleted)) do
    local key = read_dates(sha)
    redis.call('HDEL', terms, sha)
    redis.call('HDEL', dates, sha)
    redis.call('HDEL', names, key.tenant .. '/' .. key.id)
    redis.call('ZREM', changes, sha)
    redis.call('ZREM', ends, sha)
    redis.call('ZREM', used, sha)
  end
end

-- Returns when a key expires, given a time or a duration; 0 if neither is given.
local function expiry(time, duration)
  return duration > 0 and now + duration or time
end

local function reply_with(status, sha)
  return {status, redis.call('HGET', terms, sha), redis.call('HGET', dates, sha)}
end
