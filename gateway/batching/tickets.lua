-- One exchange of one process with one teacher's queue: takes its news in, decides for the whole fleet, wakes the others.
-- The rule is that of window.py. Times are microseconds of Redis TIME; no process clock is trusted.
-- To run it twice with the same news does no harm: a reply can be lost, and then the news is told again.
--
-- KEYS  queue, tickets, permits, batches, owners   (redis_keys.TeacherKeys)
-- ARGV  owner, wake-up channel prefix, teacher, max_in_flight, max_size, max_prompt_tokens, fleet window (us),
--       count of gone, ids; count of held, then per permit: id, deadline (us);
--       count of arrived, then per ticket: id, prompt_tokens, max_wait (us), deadline (us); all relative to now
-- Returns {next look in us or -1, processes seen, {id, batch id, batch size, ...} of this owner}

local queue, tickets, permits, batches, owners = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local owner, channel, teacher = ARGV[1], ARGV[2], ARGV[3]
local max_in_flight, max_size, max_tokens = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local fleet_window = tonumber(ARGV[7])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
-- The owner returns its permit at the deadline; the permit must not lapse before.
local grace = 1000000
local mine = {}

local at = 7
local function argument()
  at = at + 1
  return ARGV[at]
end

local function whole(number)
  return string.format('%.0f', number)
end

local function grant(id, batch, size)
  mine[#mine + 1] = id
  mine[#mine + 1] = batch
  mine[#mine + 1] = tostring(size)
end

for _ = 1, tonumber(argument()) do
  local id = argument()
  redis.call('ZREM', queue, id)
  redis.call('ZREM', permits, id)
  redis.call('HDEL', tickets, id)
end

for _ = 1, tonumber(argument()) do
  local id, deadline = argument(), tonumber(argument())
  redis.call('ZREM', queue, id)
  redis.call('HDEL', tickets, id)
  redis.call('ZADD', permits, whole(now + deadline + grace), id)
end

-- Permits whose deadline has long passed were held by a process that is gone.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', permits, '-inf', whole(now))) do
  redis.call('ZREM', permits, id)
  redis.call('HDEL', tickets, id)
end

-- No two tickets arrive at the same time, or their ids would decide who is first.
local newest = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')[2]
local arrival = math.max(now, newest and newest + 1 or 0)
for _ = 1, tonumber(argument()) do
  local id, tokens, wait, deadline = argument(), argument(), tonumber(argument()), tonumber(argument())
  local batch, size = string.match(redis.call('HGET', tickets, id) or '', '^G|(.+)|(%d+)$')
  if batch then
    grant(id, batch, size)
  else
    redis.call('ZADD', queue, 'NX', whole(arrival), id)
    redis.call('HSETNX', tickets, id, string.format('W|%s|%s|%.0f|%.0f', owner, tokens, now + wait, now + deadline))
    arrival = arrival + 1
  end
end

redis.call('ZADD', owners, whole(now), owner)
redis.call('ZREMRANGEBYSCORE', owners, '-inf', whole(now - fleet_window))

-- The first tickets of the queue that are still wanted, at most one batch of them. (Lua's unpack takes some 8000
-- values; the configuration bounds max_size at 4096.)
local function head()
  local found = {}
  local from = 0
  while #found < max_size do
    local ids = redis.call('ZRANGE', queue, from, from + max_size - 1)
    if #ids == 0 then break end
    for place, said in ipairs(redis.call('HMGET', tickets, unpack(ids))) do
      local holder, tokens, due, deadline = string.match(said or '', '^W|(.+)|(%d+)|(%d+)|(%d+)$')
      if holder and tonumber(deadline) > now then
        if #found < max_size then
          found[#found + 1] = { id = ids[place], owner = holder, tokens = tonumber(tokens),
                                due = tonumber(due), deadline = tonumber(deadline) }
        end
        from = from + 1
      else
        redis.call('ZREM', queue, ids[place])
        redis.call('HDEL', tickets, ids[place])
      end
    end
  end
  return found
end

local wake = {}
local next_look = -1
while true do
  local waiting = head()
  local room = max_in_flight - redis.call('ZCARD', permits)
  if #waiting == 0 or room <= 0 then break end
  local fits, tokens, overflows, due, earliest = 0, 0, false, false, nil
  for place, ticket in ipairs(waiting) do
    if not overflows then
      tokens = tokens + ticket.tokens
      if place > 1 and tokens > max_tokens then overflows = true else fits = place end
    end
    if ticket.due <= now then due = true end
    if not earliest or ticket.due < earliest then earliest = ticket.due end
  end
  if not (due or overflows or #waiting == max_size or tokens >= max_tokens) then
    next_look = earliest - now
    break
  end
  local size = math.min(fits, room)
  local batch = string.format('b%d', redis.call('INCR', batches))
  for place = 1, size do
    local ticket = waiting[place]
    redis.call('ZREM', queue, ticket.id)
    redis.call('ZADD', permits, whole(ticket.deadline + grace), ticket.id)
    redis.call('HSET', tickets, ticket.id, string.format('G|%s|%d', batch, size))
    if ticket.owner == owner then
      grant(ticket.id, batch, size)
    else
      local news = wake[ticket.owner] or {}
      wake[ticket.owner] = news
      news[#news + 1] = ticket.id .. '|' .. batch .. '|' .. size
    end
  end
end

for holder, news in pairs(wake) do
  redis.call('PUBLISH', channel .. holder, teacher .. '\n' .. table.concat(news, '\n'))
end
return { whole(next_look), redis.call('ZCARD', owners), mine }
