-- Stores a response, and deletes the tenant's responses that expire first until its total size is within the limit.
-- Running it twice with the same response is safe, so that the caller can retry after a lost reply.
--
-- KEYS  the response, ends, total (StoredResponseKeys)
-- ARGV  id, content, time to live in ms, counted size, limit of the total size, prefix of the names of responses,
--       limit of responses to delete in one call
-- Returns 'stored'; 'again' if more responses must be deleted first; 'full' if Redis is short of memory

local record, ends, total = unpack(KEYS)
local id, content, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local size, limit, prefix, most = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Part of Redis' memory that stored responses leave to limits, budgets and receipts.
local reserved = 0.2

local function whole(number)
  return string.format('%.0f', number)
end

-- Members of `ends` are id|size.
local function forget(member)
  redis.call('ZREM', ends, member)
  redis.call('DECRBY', total, string.match(member, '|(%d+)$'))
end

if redis.call('EXISTS', record) == 1 then
  return 'stored'
end
local deleted = 0
for _, member in ipairs(redis.call('ZRANGE', ends, '-inf', whole(now), 'BYSCORE', 'LIMIT', 0, most)) do
  forget(member)
  deleted = deleted + 1
end
if redis.call('EXISTS', ends) == 0 then
  redis.call('DEL', total)
end
local used = tonumber(redis.call('GET', total) or 0)
-- Responses to be deleted make room. None is deleted for a response that is not stored then.
local growth = math.min(size, limit - used)
local memory = redis.call('INFO', 'memory')
local max_memory = tonumber(string.match(memory, 'maxmemory:(%d+)'))
if max_memory > 0 and tonumber(string.match(memory, 'used_memory:(%d+)')) + growth > (1 - reserved) * max_memory then
  return 'full'
end
while used + size > limit do
  local oldest = redis.call('ZRANGE', ends, 0, 0)[1]
  if not oldest then
    break
  end
  if deleted == most then
    return 'again'
  end
  redis.call('UNLINK', prefix .. string.match(oldest, '^(.*)|'))
  forget(oldest)
  deleted = deleted + 1
  used = tonumber(redis.call('GET', total))
end
redis.call('SET', record, content, 'PX', ttl)
redis.call('ZADD', ends, whole(now + ttl), id .. '|' .. whole(size))
redis.call('INCRBY', total, whole(size))
-- Both expire with the last response.
local last = redis.call('ZRANGE', ends, 0, 0, 'REV', 'WITHSCORES')[2]
redis.call('PEXPIREAT', ends, last)
redis.call('PEXPIREAT', total, last)
return 'stored'
