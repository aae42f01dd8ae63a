-- Draws a request into the sample of its route, or counts a request that cannot be collected.
--
-- The sample is the requests with the lowest random priorities below `threshold`. Whatever is evicted for the limits has
-- the highest priority, and lowers the threshold to it. So each request of the period had the same chance.
--
-- KEYS  state, order, requests, routes (CollectedKeys)
-- ARGV  id, content or '' for a request that cannot be collected, priority from 0 to 1, reason of such a request,
--       number of earlier requests that were dropped, time to live in ms, limits: requests and bytes, counted bytes
--       of a request in addition to its content, route, limit of requests to evict in one call
-- Returns 'stored'; 'not_drawn'; 'skipped'; 'full' if Redis is short of memory

local state, order, requests, routes = unpack(KEYS)
local id, content, priority, reason, dropped = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local ttl, max_requests, max_bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local overhead, route, most = tonumber(ARGV[9]), ARGV[10], tonumber(ARGV[11])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Part of Redis' memory that collected requests leave to limits, budgets and receipts.
local reserved = 0.2

local function whole(number)
  return string.format('%.0f', number)
end

-- A shorter time to live of the policy applies to the current sample, a longer one to the next sample.
local since = tonumber(redis.call('HGET', state, 'since') or now)
local ends = math.min(tonumber(redis.call('HGET', state, 'ends') or now + ttl), since + ttl)
if ends <= now then
  redis.call('UNLINK', state, order, requests)
  since, ends = now, now + ttl
end
redis.call('HSET', state, 'since', whole(since), 'ends', whole(ends))
redis.call('HINCRBY', state, 'seen', 1 + dropped)
if dropped > 0 then
  redis.call('HINCRBY', state, 'skipped:dropped', dropped)
end
redis.call('ZREMRANGEBYSCORE', routes, '-inf', whole(now))
redis.call('ZADD', routes, whole(ends), route)
redis.call('PEXPIREAT', routes, redis.call('ZRANGE', routes, 0, 0, 'REV', 'WITHSCORES')[2])

local function put()
  if content == '' then
    redis.call('HINCRBY', state, 'skipped:' .. reason, 1)
    return 'skipped'
  end
  local threshold = redis.call('HGET', state, 'threshold')
  if threshold and tonumber(priority) >= tonumber(threshold) then
    return 'not_drawn'
  end
  local memory = redis.call('INFO', 'memory')
  local max_memory = tonumber(string.match(memory, 'maxmemory:(%d+)'))
  local used = tonumber(string.match(memory, 'used_memory:(%d+)'))
  if max_memory > 0 and used + #content > (1 - reserved) * max_memory then
    redis.call('HINCRBY', state, 'skipped:no_memory', 1)
    return 'full'
  end
  if redis.call('HSETNX', requests, id, content) == 0 then
    return 'stored'
  end
  redis.call('ZADD', order, priority, id)
  local bytes = redis.call('HINCRBY', state, 'bytes', #content + overhead)
  local number, evicted, result = redis.call('ZCARD', order), 0, 'stored'
  while (number > max_requests or bytes > max_bytes) and evicted < most do
    local last = redis.call('ZPOPMAX', order)
    local size = redis.call('HSTRLEN', requests, last[1]) + overhead
    redis.call('HDEL', requests, last[1])
    redis.call('HSET', state, 'threshold', last[2])
    bytes = redis.call('HINCRBY', state, 'bytes', whole(-size))
    number, evicted = number - 1, evicted + 1
    if last[1] == id then
      result = 'not_drawn'
    end
  end
  return result
end

local result = put()
for _, key in ipairs({ state, order, requests }) do
  redis.call('PEXPIREAT', key, whole(ends))
end
return result
