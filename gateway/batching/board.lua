-- One exchange of one process with one teacher's board: takes its news in, decides for the whole fleet, wakes the others.
-- The rules are those of window.py and board.py, function by function; read them there. Times are microseconds of Redis
-- TIME; no process clock is trusted. To run it twice with the same news does no harm: a reply can be lost, and then the
-- news is told again.
--
-- Versions with another layout have a board of their own, by other names. What the teacher takes is shared out among the
-- boards by `boards`, the one key that all of them know (docs/upgrading.md).
--
-- KEYS  queue, tickets, ends, permits, flights, followers, passes, idle, owners, state, cache, cache_ends, settled,
--       boards (TeacherKeys)
-- ARGV  owner, channel prefix, teacher, 1 if everything that is held is told, fleet, 1 if returning, 1 if leaving,
--       max_in_flight, max_size, max_prompt_tokens, low_water, max_queue, max_cache_bytes, lease,
--       layout; count of gone, ids; count of finished, then per ticket: id, guidance;
--       count of held, then of arrived, per ticket: id, tenant, stride, prompt_tokens, max_wait, deadline, cache_ttl, work
-- Returns {next look or -1, fleet, beside, in flight, waiting, window or -1, reclaimed, broken, {sizes opened}, {told}},
--       where told is, per ticket of this owner: id, kind, two values:
--       G batch size | S guidance - | C guidance - | R retry_after - | X - -

local queue, tickets, ends, permits, flights, followers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local passes, idle, owners, state, cache, cache_ends, settled, boards = unpack(KEYS, 7)
local owner, channel, teacher = ARGV[1], ARGV[2], ARGV[3]
local everything, fleet, returning, leaving = ARGV[4] == '1', tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7] == '1'
local max_in_flight, max_size, max_tokens = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local low_water, max_queue = tonumber(ARGV[11]), tonumber(ARGV[12])
local max_bytes, lease, layout = tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15]
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local grace, jump, settle, second = 2000000, 2000000, 2000000, 1000000
local longest_hold, retry_blind, keep_keys_s = 2000000, 10000000, 86400
local cache_overhead, most_ended, most_dropped = 100, 20, 1000
local most_forgotten, most_reclaimed, soon = 1000, 2000, 10000
local look_beside = 20000

local cap = 0 -- how many permits may be out
local told, wake, asked, opened, reclaimed, broken = {}, {}, {}, {}, 0, 0

local at = 15
local function argument()
  at = at + 1
  return ARGV[at]
end

local function whole(number)
  return string.format('%.0f', number)
end

-- The state: numbers by name, read once and written once.
local names = { 'seq', 'pass', 'batches', 'room_since', 'last', 'settle_until', 'settle_fleet', 'sweep_at', 'sweep_until',
                'cache_bytes', 'a_start', 'a_before', 'a_current', 'g_start', 'g_before', 'g_current' }
local s = {}
for place, value in ipairs(redis.call('HMGET', state, unpack(names))) do
  s[names[place]] = tonumber(value or '0')
end

-- A ticket is kept as one line. Letters: W waiting, F following, G granted, S shared; more: the grant or the guidance.
-- First stands the layout: the line of another one says nothing here.
local line_of = '^' .. layout .. '|([WFGS])|([^|]*)|([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|([^|]*)|(.*)$'

local function read(id)
  local said = redis.call('HGET', tickets, id)
  if not said then return nil end
  local letter, holder, tenant, stride, tokens, wait, since, seq, ttl, work, more = string.match(said, line_of)
  if not letter then return nil, true end
  return { id = id, letter = letter, owner = holder, tenant = tenant, stride = tonumber(stride),
           tokens = tonumber(tokens), wait = tonumber(wait), since = tonumber(since), seq = tonumber(seq),
           ttl = tonumber(ttl), work = work, more = more }
end

local function write(t)
  redis.call('HSET', tickets, t.id, string.format('%s|%s|%s|%s|%.0f|%.0f|%.0f|%.0f|%.0f|%.0f|%s|', layout, t.letter,
    t.owner, t.tenant, t.stride, t.tokens, t.wait, t.since, t.seq, t.ttl, t.work) .. t.more)
end

local function tell(t, kind, one, two)
  if t.owner == owner then
    for _, part in ipairs({ t.id, kind, one, two }) do told[#told + 1] = part end
  else
    local news = wake[t.owner] or {}
    wake[t.owner] = news
    news[#news + 1] = table.concat({ t.id, kind, two, one }, '|')
  end
end

-- Tickets stand in one sorted set, without scores: by tenant, then by arrival.
local function place_of(group, t)
  return group .. '|' .. string.format('%016.0f', t.seq) .. '|' .. t.id
end

local function places_in(key, group, many, after)
  local from = after and '(' .. after or '[' .. group .. '|'
  return redis.call('ZRANGEBYLEX', key, from, '(' .. group .. '}', 'LIMIT', 0, many)
end

local function id_in(place)
  return string.match(place, '^[^|]*|%d+|(.*)$')
end

local function queued(tenant)
  return redis.call('ZLEXCOUNT', queue, '[' .. tenant .. '|', '(' .. tenant .. '}')
end

local function enqueue(t)
  if not redis.call('ZSCORE', passes, t.tenant) then
    local pass = math.max(tonumber(redis.call('ZSCORE', idle, t.tenant) or '0'), s.pass)
    redis.call('ZREM', idle, t.tenant)
    redis.call('ZADD', passes, whole(pass), t.tenant)
  end
  redis.call('ZADD', queue, 0, place_of(t.tenant, t))
end

-- The fair order holds only tenants that wait, or each exchange would walk over all that ever came. What another one's
-- pass is ahead by stands apart until it comes again.
local function place_tenant(tenant, pass)
  if queued(tenant) > 0 then
    redis.call('ZADD', passes, whole(pass), tenant)
    return
  end
  redis.call('ZREM', passes, tenant)
  if pass > s.pass then redis.call('ZADD', idle, whole(pass), tenant) end
end

local function detach(t)
  if t.letter == 'W' then
    redis.call('ZREM', queue, place_of(t.tenant, t))
    if queued(t.tenant) == 0 then
      place_tenant(t.tenant, tonumber(redis.call('ZSCORE', passes, t.tenant) or '0'))
    end
  elseif t.letter == 'G' then redis.call('SREM', permits, t.id)
  elseif t.letter == 'F' then redis.call('ZREM', followers, place_of(t.work, t)) end
end

local function drop(id)
  redis.call('HDEL', tickets, id)
  redis.call('ZREM', ends, id)
end

local function promote(work)
  local after
  while true do
    local place = places_in(followers, work, 1, after)[1]
    if not place then return end
    local id = id_in(place)
    local t = read(id)
    if not t then
      redis.call('ZREM', followers, place)
    elseif tonumber(redis.call('ZSCORE', ends, id) or '0') > now then
      redis.call('ZREM', followers, place)
      t.letter = 'W'
      write(t)
      redis.call('HSET', flights, work, id)
      enqueue(t)
      return
    end
    after = place
  end
end

-- Who leads this work; one whose ticket is lost leads nobody.
local function leader(work)
  local lead = work ~= '' and redis.call('HGET', flights, work)
  return lead and redis.call('HEXISTS', tickets, lead) == 1 and lead
end

-- A ticket whose line says nothing any more. It may have led: nobody may go on waiting for it.
local function drop_unreadable(id)
  broken = broken + 1
  drop(id)
  redis.call('SREM', permits, id)
  local led = redis.call('HGETALL', flights)
  for place = 1, #led, 2 do
    if led[place + 1] == id then
      redis.call('HDEL', flights, led[place])
      promote(led[place])
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
  if t.work ~= '' and redis.call('HGET', flights, t.work) == id then
    redis.call('HDEL', flights, t.work)
    promote(t.work)
  end
end

local function drop_kept(work)
  local kept = redis.call('HGET', cache, work)
  if kept then
    redis.call('HDEL', cache, work)
    s.cache_bytes = s.cache_bytes - #work - #kept - cache_overhead
  end
  redis.call('ZREM', cache_ends, work)
end

local function forget_kept()
  redis.call('UNLINK', cache, cache_ends)
  s.cache_bytes = 0
end

local function keep(t, guidance)
  drop_kept(t.work)
  local size = #t.work + #guidance + cache_overhead
  -- Redis lost one of the two: what is left in the other would be counted, or kept, for ever.
  if redis.call('HLEN', cache) == 0 or redis.call('ZCARD', cache_ends) == 0 then forget_kept() end
  if size <= max_bytes then
    redis.call('HSET', cache, t.work, guidance)
    redis.call('ZADD', cache_ends, whole(now + t.ttl), t.work)
    s.cache_bytes = s.cache_bytes + size
  end
  -- Those that end first. Of what has ended few at a time: a cache full of it must not hold Redis up.
  local dropped = 0
  while true do
    local first = redis.call('ZRANGE', cache_ends, 0, most_ended - 1, 'WITHSCORES')
    if #first == 0 then return end
    for place = 1, #first, 2 do
      local ended = tonumber(first[place + 1]) <= now
      local may_stay = not ended or dropped >= most_ended
      if dropped >= most_dropped or (may_stay and s.cache_bytes <= max_bytes) then return end
      drop_kept(first[place])
      dropped = dropped + 1
    end
  end
end

local function finish(id, guidance)
  local t = read(id)
  if not t then return remove(id) end
  if t.work ~= '' and redis.call('HGET', flights, t.work) == id then
    for _, place in ipairs(places_in(followers, t.work, -1)) do
      redis.call('ZREM', followers, place)
      local follower = read(id_in(place))
      if follower then
        follower.letter, follower.more = 'S', guidance
        write(follower)
        redis.call('ZINCRBY', ends, grace, follower.id)
        tell(follower, 'S', guidance, '-')
      end
    end
  end
  if t.ttl > 0 then keep(t, guidance) end
  remove(id)
end

local function ticket_argument()
  return { id = argument(), owner = owner, tenant = argument(), stride = tonumber(argument()),
           tokens = tonumber(argument()), wait = tonumber(argument()), deadline = tonumber(argument()),
           ttl = tonumber(argument()), work = argument(), since = now, seq = 0, letter = 'W', more = '' }
end

local function hold(told_of)
  local t = read(told_of.id)
  if not t then
    t = told_of
    t.more = 'held|0'
  elseif t.letter ~= 'G' then
    detach(t)
    t.more = 'held|0'
  end
  if t.work ~= '' and not leader(t.work) then redis.call('HSET', flights, t.work, t.id) end
  t.letter = 'G'
  write(t)
  redis.call('ZADD', ends, whole(now + told_of.deadline + grace), t.id)
  redis.call('SADD', permits, t.id)
end

-- A rate: events of the current second, and of the one before as much as it still overlaps the last.
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
    tell(t, 'X', '-', '-')
    return
  elseif known then
    local ends_at = now + t.deadline -- somebody may want it for longer than was told before
    if known.letter == 'G' and returning and redis.call('SCARD', permits) > cap then
      -- It never heard of this permit, and has granted others meanwhile.
      detach(known)
      known.letter, known.more = 'W', ''
      write(known)
      enqueue(known)
    elseif known.letter == 'G' then
      local batch, size = string.match(known.more, '^(.+)|(%d+)$')
      tell(known, 'G', batch, size)
      ends_at = ends_at + grace
    elseif known.letter == 'S' then
      tell(known, 'S', known.more, '-')
      ends_at = ends_at + grace
    end
    redis.call('ZADD', ends, whole(ends_at), t.id)
    return
  end
  if t.deadline <= 0 then return end
  if t.ttl > 0 then
    local kept_until = tonumber(redis.call('ZSCORE', cache_ends, t.work) or '0')
    local kept = kept_until > now and redis.call('HGET', cache, t.work)
    if kept then
      tell(t, 'C', kept, '-')
      return
    end
  end
  local follows = leader(t.work)
  if not follows and queued(t.tenant) >= max_queue then
    tell(t, 'R', whole(time_for('g', redis.call('ZCARD', queue)) or retry_blind), '-')
    return
  end
  s.seq = math.max(now, s.seq + 1)
  t.seq = s.seq
  redis.call('ZADD', ends, whole(now + t.deadline), t.id)
  if follows then
    t.letter = 'F'
    write(t)
    redis.call('ZADD', followers, 0, place_of(t.work, t))
    return
  end
  write(t)
  count('a', 1)
  if t.work ~= '' then redis.call('HSET', flights, t.work, t.id) end
  enqueue(t)
end

-- Tickets of these processes, and where to go on: about so many lines are read from there, and 0 is the end.
local function tickets_of(holders, from, most)
  local found, seen = {}, 0
  repeat
    local page = redis.call('HSCAN', tickets, whole(from), 'COUNT', 500)
    from = tonumber(page[1])
    for place = 1, #page[2], 2 do
      local holder = string.match(page[2][place + 1], '^%d+|%u|([^|]*)|')
      if holder and holders[holder] then found[#found + 1] = page[2][place] end
    end
    seen = seen + #page[2] / 2
  until from == 0 or seen >= most
  return found, from
end

-- Time: what the clock jumped by, or the board stood still for, is given to everybody.
local before = s.last
local gap = before == 0 and 0 or now - before
s.last = now
if before == 0 then forget_kept() end -- how much it is was lost
if gap < 0 or gap > jump then
  for _, key in ipairs({ owners, ends }) do
    local scored = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for place = 1, #scored, 2 do
      redis.call('ZADD', key, whole(tonumber(scored[place + 1]) + gap), scored[place])
    end
  end
  if s.room_since ~= 0 then s.room_since = s.room_since + gap end
  s.settle_until, s.sweep_until = s.settle_until + gap, s.sweep_until + gap
end

-- A board that begins, and one to which a process returns, does not know of all calls in flight.
if (before == 0 or returning) and now >= s.settle_until then
  s.settle_until, s.settle_fleet = now + settle, 0
  redis.call('DEL', settled)
  asked = redis.call('ZRANGE', owners, 0, -1)
end
if now < s.settle_until then
  s.settle_fleet = math.max(s.settle_fleet, fleet)
  if everything then redis.call('SADD', settled, owner) end
  if redis.call('SCARD', settled) >= s.settle_fleet then s.settle_until = now end
end
if now >= s.settle_until then cap, asked = max_in_flight, {} end

for _ = 1, tonumber(argument()) do remove(argument()) end
for _ = 1, tonumber(argument()) do
  local id = argument()
  finish(id, argument())
end
for _ = 1, tonumber(argument()) do hold(ticket_argument()) end

-- What ended, and what the dead left: so much at a time that Redis is not held up.
local ended = redis.call('ZRANGEBYSCORE', ends, '-inf', whole(now), 'LIMIT', 0, most_reclaimed)
for _, id in ipairs(ended) do
  reclaimed = reclaimed + redis.call('SISMEMBER', permits, id)
  remove(id)
end
local late = #ended == most_reclaimed -- others that ended may still stand in the queue: nothing is granted meanwhile
local unfinished = late

redis.call('ZADD', owners, whole(now), owner)
local dead = {}
for _, holder in ipairs(redis.call('ZRANGEBYSCORE', owners, '-inf', whole(now - lease))) do dead[holder] = true end
if not next(dead) then
  s.sweep_at = 0
elseif not unfinished then
  -- A sweep reads every ticket, in some exchanges if need be. Those are gone that were dead when it began.
  if s.sweep_at == 0 then s.sweep_until = now - lease end
  local found
  found, s.sweep_at = tickets_of(dead, s.sweep_at, most_reclaimed)
  for _, id in ipairs(found) do
    reclaimed = reclaimed + 1
    remove(id)
  end
  if s.sweep_at == 0 then redis.call('ZREMRANGEBYSCORE', owners, '-inf', whole(s.sweep_until)) end
  unfinished = redis.call('ZCOUNT', owners, '-inf', whole(now - lease)) > 0
end
if leaving then
  for _, id in ipairs((tickets_of({ [owner] = true }, 0, math.huge))) do remove(id) end
  redis.call('ZREM', owners, owner)
end

-- The boards of a teacher share it out by how many processes each has, and each leaves room for what the others have in
-- flight. What a share is short of a whole permit comes to it in turn, by the second: together they are the whole.
local beside, in_flight_beside, before_us, takes = 0, 0, 0, max_in_flight
local others = redis.call('HGETALL', boards)
for place = 1, #others, 2 do
  local heard, processes, calls = string.match(others[place + 1], '^(%d+)|(%d+)|(%d+)')
  if heard and (gap < 0 or gap > jump) then
    heard = now -- they could not be heard of, and have a lease to be
    redis.call('HSET', boards, others[place], (string.gsub(others[place + 1], '^%d+', whole(now))))
  end
  if not heard or math.abs(now - heard) >= lease then
    redis.call('HDEL', boards, others[place]) -- all of its processes died
  elseif others[place] ~= layout then
    beside, in_flight_beside = beside + processes, in_flight_beside + calls
    if tonumber(others[place]) < tonumber(layout) then before_us = before_us + processes end
  end
end
if beside > 0 and cap > 0 then
  local all = beside + redis.call('ZCARD', owners)
  local turn = math.floor(now / second) % all
  local function upto(processes) return math.floor((max_in_flight * processes + turn) / all) end
  local share = upto(before_us + all - beside) - upto(before_us)
  takes = math.max(1, share)
  cap = math.max(0, math.min(share, max_in_flight - in_flight_beside))
end

count('a', 0)
count('g', 0)
for _ = 1, tonumber(argument()) do arrive(ticket_argument()) end

-- Fair order. Tenants are taken up as their turn comes, those of equal passes by name; one that had its turn stands
-- behind its equals.
local limit = math.min(max_size, takes)
local turns, next_tenants, taken_up, put_back = {}, nil, 0, 1000000000
local moved = {} -- the new pass of a tenant, written when the order is read no more

local function look_ahead()
  if not next_tenants or (#next_tenants == 0 and next_tenants.more) then
    local found = redis.call('ZRANGE', passes, taken_up, taken_up + limit - 1, 'WITHSCORES')
    next_tenants = { more = #found > 0 }
    for place = #found, 1, -2 do
      next_tenants[#next_tenants + 1] = { tenant = found[place - 1], turn = tonumber(found[place]) }
    end
  end
  return next_tenants[#next_tenants]
end

local passed_over = 0

local function more_of(one)
  repeat
    local places = places_in(queue, one.tenant, limit, one.after)
    one.waiting, one.next, one.after = {}, 1, places[#places]
    local stale = {}
    for _, place in ipairs(places) do
      local id, t, unreadable = id_in(place), nil, false
      if id then t, unreadable = read(id) else broken = broken + 1 end
      if t and t.letter == 'W' then
        one.waiting[#one.waiting + 1] = t
      else
        stale[#stale + 1] = place
        -- Kept for a while as it is, so that its owner hears of it when it asks again.
        if unreadable then redis.call('ZADD', ends, whole(now + jump), id) end
      end
    end
    if #stale > 0 then redis.call('ZREM', queue, unpack(stale)) end
    passed_over = passed_over + #stale
    unfinished = unfinished or passed_over >= most_reclaimed
  until #one.waiting > 0 or #places == 0 or passed_over >= most_reclaimed
  return #one.waiting > 0
end

local function next_in_order()
  while true do
    local best
    for place, one in ipairs(turns) do
      if not best or one.turn < turns[best].turn
         or (one.turn == turns[best].turn and one.place < turns[best].place) then best = place end
    end
    local ahead = look_ahead()
    if ahead and (not best or ahead.turn < turns[best].turn
                  or (ahead.turn == turns[best].turn and turns[best].place >= 1000000000)) then
      table.remove(next_tenants)
      taken_up = taken_up + 1
      ahead.place = taken_up
      if more_of(ahead) then turns[#turns + 1] = ahead
      else moved[ahead.tenant] = ahead.turn end -- the tickets at its places are lost
    elseif not best then
      return nil
    else
      local one = turns[best]
      if one.next > #one.waiting and not more_of(one) then
        table.remove(turns, best)
      else
        local t = one.waiting[one.next]
        one.next = one.next + 1
        t.turn = one.turn
        one.turn = one.turn + t.stride
        put_back = put_back + 1
        one.place = put_back
        return t
      end
    end
  end
end

local head, in_flight = {}, redis.call('SCARD', permits)
local unseen = redis.call('ZCARD', queue) -- so that nobody looks for tickets where there are none
local next_look, window = -1, -1

-- window.py's rule: how many of the head go now, and until when to wait if none.
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
  local enough = full and math.min(fits, math.max(1, math.floor(takes / 3))) or fits
  local fill = full and time_for('g', 3 * enough) or not full and time_for('a', limit)
  local due, patience_of_due = nil, 0
  for _, t in ipairs(head) do
    local patience = t.wait
    if in_flight < low_water or t.since > now then patience = 0
    elseif fill then patience = math.min(full and longest_hold or patience, fill) end
    local start = patience > 0 and math.max(t.since, s.room_since) or now
    if not due or start + patience < due then due, patience_of_due = start + patience, patience end
  end
  window = patience_of_due
  if due <= now or (full and cap - in_flight >= enough) then return math.min(fits, cap - in_flight) end
  next_look = due - now
  return 0
end

while not late do
  next_look = -1
  if cap - in_flight <= 0 then
    s.room_since = 0
    if now < s.settle_until then next_look = s.settle_until - now
    elseif cap < max_in_flight and unseen > 0 then next_look = look_beside end -- nobody tells what other boards return
    break
  end
  if s.room_since <= 0 or s.room_since > now then s.room_since = now end
  while #head < limit and unseen > 0 do
    local t = next_in_order()
    if not t then break end
    head[#head + 1] = t
    unseen = unseen - 1
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
    redis.call('ZREM', queue, place_of(t.tenant, t))
    s.pass = math.max(s.pass, t.turn)
    moved[t.tenant] = t.turn + t.stride
    t.letter, t.more = 'G', string.format('%s|%d', batch, size)
    write(t)
    redis.call('ZINCRBY', ends, grace, t.id)
    redis.call('SADD', permits, t.id)
    tell(t, 'G', batch, tostring(size))
  end
  in_flight = in_flight + size
end

for tenant, pass in pairs(moved) do place_tenant(tenant, pass) end

if math.floor(now / second) ~= math.floor(before / second) then
  -- A tenant whose pass is behind starts at s.pass in any case.
  local behind = redis.call('ZRANGEBYSCORE', idle, '-inf', whole(s.pass), 'LIMIT', 0, most_forgotten)
  if #behind > 0 then redis.call('ZREM', idle, unpack(behind)) end
  -- A fleet that is gone for good leaves nothing behind for ever.
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, keep_keys_s) end
end

if unfinished then next_look = next_look < 0 and soon or math.min(next_look, soon) end

local function publish(holder, text)
  redis.call('PUBLISH', channel .. holder, text)
end

for holder, news in pairs(wake) do publish(holder, teacher .. '\n' .. table.concat(news, '\n')) end
-- A wake-up without outcomes asks for everything. By themselves they tell it within a second, and nothing is granted
-- before.
for _, holder in ipairs(asked) do
  if holder ~= owner then publish(holder, teacher) end
end
local written = {}
for _, name in ipairs(names) do
  written[#written + 1] = name
  written[#written + 1] = whole(s[name])
end
redis.call('HSET', state, unpack(written))
local fleet_now = redis.call('ZCARD', owners)
if fleet_now == 0 and in_flight == 0 then
  redis.call('HDEL', boards, layout)
else
  redis.call('HSET', boards, layout, string.format('%.0f|%d|%d', now, fleet_now, in_flight))
end
return { whole(next_look), fleet_now, beside, in_flight, redis.call('ZCARD', queue), whole(window),
         reclaimed, broken, opened, told }
