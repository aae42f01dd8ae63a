-- Returns the changes of keys after a version. It only reads.
--
-- KEYS  terms, dates, changes, heads, state
-- ARGV  a version that the process has read and its word, or 0 and ''; the version after which to read; limit of keys
-- Returns {1 if the history contains that version and word, current version, its word, number of all keys, Redis TIME,
--          then for each key: SHA-256, version, terms, dates}

local terms, dates, changes, heads, state = unpack(KEYS)
local clock = redis.call('TIME')
local version = redis.call('HGET', state, 'version') or '0'
local reply = {1, version, redis.call('HGET', state, 'word') or '', redis.call('HLEN', terms),
              string.format('%.0f', clock[1] * 1000000 + clock[2])}
if ARGV[1] ~= '0' and redis.call('HGET', heads, ARGV[1]) ~= ARGV[2] then
  reply[1] = 0
  return reply
end
if ARGV[3] == version then
  return reply
end
local changed = redis.call('ZRANGE', changes, '(' .. ARGV[3], '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[4], 'WITHSCORES')
for i = 1, #changed, 2 do
  local sha = changed[i]
  reply[#reply + 1] = sha
  reply[#reply + 1] = changed[i + 1]
  reply[#reply + 1] = redis.call('HGET', terms, sha)
  reply[#reply + 1] = redis.call('HGET', dates, sha)
end
return reply
