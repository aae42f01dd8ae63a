-- What changed since a process last looked. It only reads.
--
-- KEYS  terms, dates, changes, heads, state
-- ARGV  a version that the process saw and its word, or 0 and an empty word; the version after which to read; most keys
-- Returns {1 if this is the history that the process saw, version now, its word, keys in all, Redis TIME,
--          then per key: SHA-256, version, terms, dates}

local terms, dates, changes, heads, state = unpack(KEYS)
local clock = redis.call('TIME')
local version = redis.call('HGET', state, 'version') or '0'
local said = {1, version, redis.call('HGET', state, 'word') or '', redis.call('HLEN', terms),
              string.format('%.0f', clock[1] * 1000000 + clock[2])}
if ARGV[1] ~= '0' and redis.call('HGET', heads, ARGV[1]) ~= ARGV[2] then
  said[1] = 0
  return said
end
if ARGV[3] == version then
  return said
end
local changed = redis.call('ZRANGE', changes, '(' .. ARGV[3], '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[4], 'WITHSCORES')
for i = 1, #changed, 2 do
  local sha = changed[i]
  said[#said + 1] = sha
  said[#said + 1] = changed[i + 1]
  said[#said + 1] = redis.call('HGET', terms, sha)
  said[#said + 1] = redis.call('HGET', dates, sha)
end
return said
