-- One exchange of a process with one teacher's scheduler: apply an update, decide for the fleet, wake other processes.
-- The rules are those of window.py and scheduler.py, function by function. Times are microseconds of Redis TIME, and no
-- process clock is used. An exchange is idempotent: a process that lost the reply sends its update again.
--
-- KEYS  queue, tickets, ends, permits, flights, followers, passes, idle, owners, state, cache, cache_ends, settled
--       (TeacherKeys)
-- ARGV  process id, channel prefix, teacher, 1 if the update is complete, fleet size, 1 if rejoining, 1 if leaving,
--       max_in_flight, max_size, max_prompt_tokens, low_water, max_queue, max_cache_bytes, lease;
--       count of released ids, ids; count of finished tickets, per ticket: id, guidance;
--       count of held tickets, then of arrived tickets, per ticket: id, tenant, stride, prompt_tokens, max_wait,
--       deadline, cache_ttl, dedupe key
-- Returns {time until the next exchange or -1, fleet size, in flight, waiting,
--       window or -1, reclaimed, unreadable, {sizes of opened batches}, {outcomes}},
--       where the outcomes are, per ticket of this process: id, kind, two values:
--       G batch size | S guidance - | C guidance - | R retry_after - | X - -

local queue, tickets, ends, permits, flights, followers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local passes, idle, owners, state, cache, cache_ends, settled = unpack(KEYS, 7)
local process_id, channel, teacher = ARGV[1], ARGV[2], ARGV[3]
local complete, fleet, rejoining, leaving = ARGV[4] == '1', tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7] == '1'
local max_in_flight, max_size, max_tokens = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local low_water, max_queue = tonumber(ARGV[11]), tonumber(ARGV[12])
local max_bytes, lease = tonumber(ARGV[13]), tonumber(ARGV[14])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local grace, jump, settle, second = 2000000, 2000000, 2000000, 1000000
local max_accumulation, default_retry, keep_keys_s = 2000000, 10000000, 86400
local cache_overhead, max_expired_evictions, max_evictions = 100, 20, 1000
local max_forgotten, max_reclaimed, soon = 1000, 2000, 10000

local cap = 0 -- permits that may be in use now
local outcomes, wake, queried, opened, reclaimed, unreadable_count = {}, {}, {}, {}, 0, 0

local at = 14
local function argument()
  at = at + 1
  return ARGV[at]
end

local function integer(number)
  return string.format('%.0f', number)
end

-- The state is a set of named numbers, read once and written once.
local names = { 'seq', 'pass', 'batches', 'room_since', 'last', 'settle_until', 'settle_fleet', 'sweep_at',
                'sweep_until', 'cache_bytes', 'a_start', 'a_before', 'a_current', 'g_start', 'g_before', 'g_current' }
local s = {}
for i, value in ipairs(redis.call('HMGET', state, unpack(names))) do
  s[names[i]] = tonumber(value or '0')
end

-- A ticket is stored as one line. Letters: W waiting, F following, G granted, S shared; `more` is the grant or text.
local line_of = '^([WFGS])|([^|]*)|([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|([^|]*)|(.*)$'

local function read(id)
  local line = redis.call('HGET', tickets, id)
  if not line then return nil end
  local letter, holder, tenant, stride, tokens, wait, since, seq, ttl, dedupe_key, more = string.match(line, line_of)
  if not letter then return nil, true end
  return { id = id, letter = letter, process_id = holder, tenant = tenant, stride = tonumber(stride),
           tokens = tonumber(tokens), wait = tonumber(wait), since = tonumber(since), seq = tonumber(seq),
           ttl = tonumber(ttl), dedupe_key = dedupe_key, more = more }
end

local function write(t)
  redis.call('HSET', tickets, t.id, string.format('%s|%s|%s|%.0f|%.0f|%.0f|%.0f|%.0f|%.0f|%s|', t.letter, t.process_id,
    t.tenant, t.stride, t.tokens, t.wait, t.since, t.seq, t.ttl, t.dedupe_key) .. t.more)
end

local function deliver(t, kind, one, two)
  if t.process_id == process_id then
    for _, part in ipairs({ t.id, kind, one, two }) do outcomes[#outcomes + 1] = part end
  else
    local lines = wake[t.process_id] or {}
    wake[t.process_id] = lines
    lines[#lines + 1] = table.concat({ t.id, kind, two, one }, '|')
  end
end

-- The queue is one sorted set without scores, ordered by tenant, then by arrival.
local function member_of(group, t)
  return group .. '|' .. string.format('%016.0f', t.seq) .. '|' .. t.id
end

local function members_in(key, group, limit, after)
  local from = after and '(' .. after or '[' .. group .. '|'
  return redis.call('ZRANGEBYLEX', key, from, '(' .. group .. '}', 'LIMIT', 0, limit)
end

local function id_of(member)
  return string.match(member, '^[^|]*|%d+|(.*)$')
end

local function queued(tenant)
  return redis.call('ZLEXCOUNT', queue, '[' .. tenant .. '|', '(' .. tenant .. '}')
end

local function enqueue(t)
  if not redis.call('ZSCORE', passes, t.tenant) then
    local pass = math.max(tonumber(redis.call('ZSCORE', idle, t.tenant) or '0'), s.pass)
    redis.call('ZREM', idle, t.tenant)
    redis.call('ZADD', passes, integer(pass), t.tenant)
  end
  redis.call('ZADD', queue, 0, member_of(t.tenant, t))
end

-- The fair order holds only tenants with waiting tickets, so that an exchange does not scan all tenants ever seen. The
-- pass of another tenant is stored in `idle` while it is ahead of the last permit's.
local function set_pass(tenant, pass)
  if queued(tenant) > 0 then
    redis.call('ZADD', passes, integer(pass), tenant)
    return
  end
  redis.call('ZREM', passes, tenant)
  if pass > s.pass then redis.call('ZADD', idle, integer(pass), tenant) end
end

local function detach(t)
  if t.letter == 'W' then
    redis.call('ZREM', queue, member_of(t.tenant, t))
    if queued(t.tenant) == 0 then
      set_pass(t.tenant, tonumber(redis.call('ZSCORE', passes, t.tenant) or '0'))
    end
  elseif t.letter == 'G' then redis.call('SREM', permits, t.id)
  elseif t.letter == 'F' then redis.call('ZREM', followers, member_of(t.dedupe_key, t)) end
end

local function drop(id)
  redis.call('HDEL', tickets, id)
  redis.call('ZREM', ends, id)
end

local function promote(dedupe_key)
  local after
  while true do
    local member = members_in(followers, dedupe_key, 1, after)[1]
    if not member then return end
    local id = id_of(member)
    local t = read(id)
    if not t then
      redis.call('ZREM', followers, member)
    elseif tonumber(redis.call('ZSCORE', ends, id) or '0') > now then
      redis.call('ZREM', followers, member)
      t.letter = 'W'
      write(t)
      redis.call('HSET', flights, dedupe_key, id)
      enqueue(t)
      return
    end
    after = member
  end
end

-- Return the leader of a key; a leader without a ticket does not count.
local function leader(dedupe_key)
  local leader_id = dedupe_key ~= '' and redis.call('HGET', flights, dedupe_key)
  return leader_id and redis.call('HEXISTS', tickets, leader_id) == 1 and leader_id
end

-- Drop a ticket that cannot be decoded. If it was a leader, promote a follower.
local function drop_unreadable(id)
  unreadable_count = unreadable_count + 1
  drop(id)
  redis.call('SREM', permits, id)
  local leaders_by_key = redis.call('HGETALL', flights)
  for i = 1, #leaders_by_key, 2 do
    if leaders_by_key[i + 1] == id then
      redis.call('HDEL', flights, leaders_by_key[i])
      promote(leaders_by_key[i])
    end
  end
end

local function remove(id)
  local t, unreadable = read(id)
  if unreadable then return drop_unreadable(id) end
  drop(id)
  if not t then
    redis.call('SREM', permits, id)
    return
  end
  detach(t)
  if t.dedupe_key ~= '' and redis.call('HGET', flights, t.dedupe_key) == id then
    redis.call('HDEL', flights, t.dedupe_key)
    promote(t.dedupe_key)
  end
end

local function evict(dedupe_key)
  local cached = redis.call('HGET', cache, dedupe_key)
  if cached then
    redis.call('HDEL', cache, dedupe_key)
    s.cache_bytes = s.cache_bytes - #dedupe_key - #cached - cache_overhead
  end
  redis.call('ZREM', cache_ends, dedupe_key)
end

local function clear_cache()
  redis.call('UNLINK', cache, cache_ends)
  s.cache_bytes = 0
end

local function store_guidance(t, guidance)
  evict(t.dedupe_key)
  local size = #t.dedupe_key + #guidance + cache_overhead
  -- If Redis lost one of the two keys, clear both: the rest of the other would never expire.
  if redis.call('HLEN', cache) == 0 or redis.call('ZCARD', cache_ends) == 0 then clear_cache() end
  if size <= max_bytes then
    redis.call('HSET', cache, t.dedupe_key, guidance)
    redis.call('ZADD', cache_ends, integer(now + t.ttl), t.dedupe_key)
    s.cache_bytes = s.cache_bytes + size
  end
  -- Evict the entries that expire first, and few expired ones at a time: a full cache must not block Redis.
  local dropped = 0
  while true do
    local first = redis.call('ZRANGE', cache_ends, 0, max_expired_evictions - 1, 'WITHSCORES')
    if #first == 0 then return end
    for i = 1, #first, 2 do
      local ended = tonumber(first[i + 1]) <= now
      local may_stay = not ended or dropped >= max_expired_evictions
      if dropped >= max_evictions or (may_stay and s.cache_bytes <= max_bytes) then return end
      evict(first[i])
      dropped = dropped + 1
    end
  end
end

local function finish(id, guidance)
  local t = read(id)
  if not t then return remove(id) end
  if t.dedupe_key ~= '' and redis.call('HGET', flights, t.dedupe_key) == id then
    for _, member in ipairs(members_in(followers, t.dedupe_key, -1)) do
      redis.call('ZREM', followers, member)
      local follower = read(id_of(member))
      if follower then
        follower.letter, follower.more = 'S', guidance
        write(follower)
        redis.call('ZINCRBY', ends, grace, follower.id)
        deliver(follower, 'S', guidance, '-')
      end
    end
  end
  if t.ttl > 0 then store_guidance(t, guidance) end
  remove(id)
end

local function ticket_argument()
  return { id = argument(), process_id = process_id, tenant = argument(), stride = tonumber(argument()),
           tokens = tonumber(argument()), wait = tonumber(argument()), deadline = tonumber(argument()),
           ttl = tonumber(argument()), dedupe_key = argument(), since = now, seq = 0, letter = 'W', more = '' }
end

local function hold(argument_ticket)
  local t = read(argument_ticket.id)
  if not t then
    t = argument_ticket
    t.more = 'held|0'
  elseif t.letter ~= 'G' then
    detach(t)
    t.more = 'held|0'
  end
  if t.dedupe_key ~= '' and not leader(t.dedupe_key) then redis.call('HSET', flights, t.dedupe_key, t.id) end
  t.letter = 'G'
  write(t)
  redis.call('ZADD', ends, integer(now + argument_ticket.deadline + grace), t.id)
  redis.call('SADD', permits, t.id)
end

-- A rate counts the current second's events, and the previous second's weighted by its overlap with the last one.
local function count(rate, events)
  local age = now - s[rate .. '_start']
  if age >= 2 * second or age < 0 then
    s[rate .. '_start'], s[rate .. '_before'], s[rate .. '_current'] = now, 0, 0
  elseif age >= second then
    s[rate .. '_start'], s[rate .. '_before'] = s[rate .. '_start'] + second, s[rate .. '_current']
    s[rate .. '_current'] = 0
  end
  s[rate .. '_current'] = s[rate .. '_current'] + events
end

local function time_for(rate, events)
  local weighted = s[rate .. '_before'] * (second - (now - s[rate .. '_start'])) + s[rate .. '_current'] * second
  if weighted == 0 then return nil end
  return math.floor(events * second * second / weighted)
end

local function arrive(t)
  local known, unreadable = read(t.id)
  if unreadable then
    drop_unreadable(t.id)
    deliver(t, 'X', '-', '-')
    return
  elseif known then
    local ends_at = now + t.deadline -- the deadline may have moved
    if known.letter == 'G' and rejoining and redis.call('SCARD', permits) > cap then
      -- The process missed this grant and used its local scheduler since.
      detach(known)
      known.letter, known.more = 'W', ''
      write(known)
      enqueue(known)
    elseif known.letter == 'G' then
      local batch, size = string.match(known.more, '^(.+)|(%d+)$')
      deliver(known, 'G', batch, size)
      ends_at = ends_at + grace
    elseif known.letter == 'S' then
      deliver(known, 'S', known.more, '-')
      ends_at = ends_at + grace
    end
    redis.call('ZADD', ends, integer(ends_at), t.id)
    return
  end
  if t.deadline <= 0 then return end
  if t.ttl > 0 then
    local cached_until = tonumber(redis.call('ZSCORE', cache_ends, t.dedupe_key) or '0')
    local cached = cached_until > now and redis.call('HGET', cache, t.dedupe_key)
    if cached then
      deliver(t, 'C', cached, '-')
      return
    end
  end
  local follows = leader(t.dedupe_key)
  if not follows and queued(t.tenant) >= max_queue then
    deliver(t, 'R', integer(time_for('g', redis.call('ZCARD', queue)) or default_retry), '-')
    return
  end
  s.seq = math.max(now, s.seq + 1)
  t.seq = s.seq
  redis.call('ZADD', ends, integer(now + t.deadline), t.id)
  if follows then
    t.letter = 'F'
    write(t)
    redis.call('ZADD', followers, 0, member_of(t.dedupe_key, t))
    return
  end
  write(t)
  count('a', 1)
  if t.dedupe_key ~= '' then redis.call('HSET', flights, t.dedupe_key, t.id) end
  enqueue(t)
end

-- Return tickets of these processes and the next cursor, 0 at the end, after about `limit` lines.
local function tickets_of(holders, from, limit)
  local ids, seen = {}, 0
  repeat
    local page = redis.call('HSCAN', tickets, integer(from), 'COUNT', 500)
    from = tonumber(page[1])
    for i = 1, #page[2], 2 do
      local holder = string.match(page[2][i + 1], '^%u|([^|]*)|')
      if holder and holders[holder] then ids[#ids + 1] = page[2][i] end
    end
    seen = seen + #page[2] / 2
  until from == 0 or seen >= limit
  return ids, from
end

-- Time that the clock jumped, or the scheduler was stopped, does not count toward leases and expiries.
local before = s.last
local gap = before == 0 and 0 or now - before
s.last = now
if before == 0 then clear_cache() end -- its size was lost
if gap < 0 or gap > jump then
  for _, key in ipairs({ owners, ends }) do
    local scored = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #scored, 2 do
      redis.call('ZADD', key, integer(tonumber(scored[i + 1]) + gap), scored[i])
    end
  end
  if s.room_since ~= 0 then s.room_since = s.room_since + gap end
  s.settle_until, s.sweep_until = s.settle_until + gap, s.sweep_until + gap
end

-- After a start or a rejoin, some calls in flight are unknown: delay grants until each process sent its permits.
if (before == 0 or rejoining) and now >= s.settle_until then
  s.settle_until, s.settle_fleet = now + settle, 0
  redis.call('DEL', settled)
  queried = redis.call('ZRANGE', owners, 0, -1)
end
if now < s.settle_until then
  s.settle_fleet = math.max(s.settle_fleet, fleet)
  if complete then redis.call('SADD', settled, process_id) end
  if redis.call('SCARD', settled) >= s.settle_fleet then s.settle_until = now end
end
if now >= s.settle_until then cap, queried = max_in_flight, {} end

for _ = 1, tonumber(argument()) do remove(argument()) end
for _ = 1, tonumber(argument()) do
  local id = argument()
  finish(id, argument())
end
for _ = 1, tonumber(argument()) do hold(ticket_argument()) end

-- Remove expired tickets and those of dead processes, a bounded number at a time so that Redis is not blocked.
local ended = redis.call('ZRANGEBYSCORE', ends, '-inf', integer(now), 'LIMIT', 0, max_reclaimed)
for _, id in ipairs(ended) do
  reclaimed = reclaimed + redis.call('SISMEMBER', permits, id)
  remove(id)
end
local late = #ended == max_reclaimed -- more expired tickets may be queued: grant nothing
local unfinished = late

redis.call('ZADD', owners, integer(now), process_id)
local dead = {}
for _, holder in ipairs(redis.call('ZRANGEBYSCORE', owners, '-inf', integer(now - lease))) do dead[holder] = true end
if not next(dead) then
  s.sweep_at = 0
elseif not unfinished then
  -- A sweep reads every ticket, over several exchanges if needed. It covers the processes dead at its start.
  if s.sweep_at == 0 then s.sweep_until = now - lease end
  local ids
  ids, s.sweep_at = tickets_of(dead, s.sweep_at, max_reclaimed)
  for _, id in ipairs(ids) do
    reclaimed = reclaimed + 1
    remove(id)
  end
  if s.sweep_at == 0 then redis.call('ZREMRANGEBYSCORE', owners, '-inf', integer(s.sweep_until)) end
  unfinished = redis.call('ZCOUNT', owners, '-inf', integer(now - lease)) > 0
end
if leaving then
  for _, id in ipairs((tickets_of({ [process_id] = true }, 0, math.huge))) do remove(id) end
  redis.call('ZREM', owners, process_id)
end

count('a', 0)
count('g', 0)
for _ = 1, tonumber(argument()) do arrive(ticket_argument()) end

-- Fair order. Tenants are read in the order of their passes, equal passes by name. After a grant a tenant follows those
-- with an equal pass.
local limit = math.min(max_size, max_in_flight)
local tenants, next_tenants, tenants_read, next_rank = {}, nil, 0, 1000000000
local moved = {} -- new passes by tenant, written after the order is read

local function next_tenant()
  if not next_tenants or (#next_tenants == 0 and next_tenants.more) then
    local entries = redis.call('ZRANGE', passes, tenants_read, tenants_read + limit - 1, 'WITHSCORES')
    next_tenants = { more = #entries > 0 }
    for i = #entries, 1, -2 do
      next_tenants[#next_tenants + 1] = { name = entries[i - 1], pass = tonumber(entries[i]) }
    end
  end
  return next_tenants[#next_tenants]
end

local passed_over = 0

local function read_more(tenant)
  repeat
    local members = members_in(queue, tenant.name, limit, tenant.after)
    tenant.waiting, tenant.next, tenant.after = {}, 1, members[#members]
    local stale = {}
    for _, member in ipairs(members) do
      local id, t, unreadable = id_of(member), nil, false
      if id then t, unreadable = read(id) else unreadable_count = unreadable_count + 1 end
      if t and t.letter == 'W' then
        tenant.waiting[#tenant.waiting + 1] = t
      else
        stale[#stale + 1] = member
        -- Kept for a while, so that its process receives an outcome when it sends the ticket again.
        if unreadable then redis.call('ZADD', ends, integer(now + jump), id) end
      end
    end
    if #stale > 0 then redis.call('ZREM', queue, unpack(stale)) end
    passed_over = passed_over + #stale
    unfinished = unfinished or passed_over >= max_reclaimed
  until #tenant.waiting > 0 or #members == 0 or passed_over >= max_reclaimed
  return #tenant.waiting > 0
end

local function next_in_order()
  while true do
    local best
    for i, candidate in ipairs(tenants) do
      if not best or candidate.pass < tenants[best].pass
         or (candidate.pass == tenants[best].pass and candidate.rank < tenants[best].rank) then best = i end
    end
    local tenant = next_tenant()
    if tenant and (not best or tenant.pass < tenants[best].pass
                  or (tenant.pass == tenants[best].pass and tenants[best].rank >= 1000000000)) then
      table.remove(next_tenants)
      tenants_read = tenants_read + 1
      tenant.rank = tenants_read
      if read_more(tenant) then tenants[#tenants + 1] = tenant
      else moved[tenant.name] = tenant.pass end -- its tickets are lost
    elseif not best then
      return nil
    else
      local current = tenants[best]
      if current.next > #current.waiting and not read_more(current) then
        table.remove(tenants, best)
      else
        local t = current.waiting[current.next]
        current.next = current.next + 1
        t.pass = current.pass
        current.pass = current.pass + t.stride
        next_rank = next_rank + 1
        current.rank = next_rank
        return t
      end
    end
  end
end

local head, in_flight = {}, redis.call('SCARD', permits)
local unread = redis.call('ZCARD', queue) -- bounds the search for tickets
local next_exchange, window = -1, -1

-- Return how many tickets of the head go now, by the rule in window.py; set `next_exchange` if none do.
local function open_batch()
  local fits, tokens, overflows = 0, 0, false
  for _, t in ipairs(head) do
    tokens = tokens + t.tokens
    if fits > 0 and tokens > max_tokens then
      overflows = true
      break
    end
    fits = fits + 1
  end
  local full = overflows or #head >= limit or tokens >= max_tokens
  local enough = full and math.min(fits, math.max(1, math.floor(max_in_flight / 3))) or fits
  local fill = full and time_for('g', 3 * enough) or not full and time_for('a', limit)
  local due, wait_of_due = nil, 0
  for _, t in ipairs(head) do
    local wait_us = t.wait
    if in_flight < low_water or t.since > now then wait_us = 0
    elseif fill then wait_us = math.min(full and max_accumulation or wait_us, fill) end
    local start = wait_us > 0 and math.max(t.since, s.room_since) or now
    if not due or start + wait_us < due then due, wait_of_due = start + wait_us, wait_us end
  end
  window = wait_of_due
  if due <= now or (full and cap - in_flight >= enough) then return math.min(fits, cap - in_flight) end
  next_exchange = due - now
  return 0
end

while not late do
  next_exchange = -1
  if cap - in_flight <= 0 then
    s.room_since = 0
    if now < s.settle_until then next_exchange = s.settle_until - now end
    break
  end
  if s.room_since <= 0 or s.room_since > now then s.room_since = now end
  while #head < limit and unread > 0 do
    local t = next_in_order()
    if not t then break end
    head[#head + 1] = t
    unread = unread - 1
  end
  if #head == 0 then break end
  local size = open_batch()
  if size == 0 then break end
  s.batches = s.batches + 1
  local batch = string.format('b%.0f', s.batches)
  opened[#opened + 1] = size
  count('g', size)
  for _ = 1, size do
    local t = table.remove(head, 1)
    redis.call('ZREM', queue, member_of(t.tenant, t))
    s.pass = math.max(s.pass, t.pass)
    moved[t.tenant] = t.pass + t.stride
    t.letter, t.more = 'G', string.format('%s|%d', batch, size)
    write(t)
    redis.call('ZINCRBY', ends, grace, t.id)
    redis.call('SADD', permits, t.id)
    deliver(t, 'G', batch, tostring(size))
  end
  in_flight = in_flight + size
end

for tenant, pass in pairs(moved) do set_pass(tenant, pass) end

if math.floor(now / second) ~= math.floor(before / second) then
  -- A lower pass has no effect: the tenant starts at s.pass.
  local behind = redis.call('ZRANGEBYSCORE', idle, '-inf', integer(s.pass), 'LIMIT', 0, max_forgotten)
  if #behind > 0 then redis.call('ZREM', idle, unpack(behind)) end
  -- All keys expire after the fleet is gone.
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, keep_keys_s) end
end

if unfinished then next_exchange = next_exchange < 0 and soon or math.min(next_exchange, soon) end

local function publish(holder, text)
  redis.call('PUBLISH', channel .. holder, text)
end

for holder, lines in pairs(wake) do publish(holder, teacher .. '\n' .. table.concat(lines, '\n')) end
-- A wake-up without outcomes requests a complete update. Without it, processes send one within a second, and until then
-- nothing is granted.
for _, holder in ipairs(queried) do
  if holder ~= process_id then publish(holder, teacher) end
end
local written = {}
for _, name in ipairs(names) do
  written[#written + 1] = name
  written[#written + 1] = integer(s[name])
end
redis.call('HSET', state, unpack(written))
return { integer(next_exchange), redis.call('ZCARD', owners), in_flight, redis.call('ZCARD', queue), integer(window),
         reclaimed, unreadable_count, opened, outcomes }
