#!lua flags=no-writes
-- What an operator sees of one teacher's board, in one round trip. It looks at a bounded part of it, so that however
-- much waits Redis is not held up: the tenants that wait are found by leaps through the queue, which stands in their
-- order. view.py reads what this returns.
--
-- KEYS  queue, tickets, ends, permits, flights, followers, passes, idle, owners, state, cache  (TeacherKeys)
-- ARGV  how many at most: tenants to find, tenants to tell of, permits, processes, bytes of a line; names in the state
-- Returns {now, waiting, in flight, followers, kept guidance, processes, tenants in the fair order},
--       {values of the state}, {process, when it was heard of, ...}, {line of a permit, ...},
--       {tenants found, 1 if these are all that wait, when the first of their tickets came or 0, unreadable places},
--       {{tenant, waiting, when its first ticket came or 0, that ticket's line}, ...}
--       A line that is not there is ''.

local queue, tickets, permits, followers, passes = KEYS[1], KEYS[2], KEYS[4], KEYS[6], KEYS[7]
local owners, state, cache = KEYS[9], KEYS[10], KEYS[11]
local most_found, most_told, most_permits = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local most_owners, most_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local names = { unpack(ARGV, 6) }
-- As board.lua writes it.
local place_of = '^([^|]*)|(' .. string.rep('%d', 16) .. ')|(.*)$'
local clock = redis.call('TIME')

local function lines_of(ids)
  local lines = {}
  if #ids > 0 then
    for place, line in ipairs(redis.call('HMGET', tickets, unpack(ids))) do
      lines[place] = string.sub(line or '', 1, most_bytes)
    end
  end
  return lines
end

local waiting, known = redis.call('ZCARD', queue), redis.call('ZCARD', passes)

-- From tenant to tenant; where there are too many of them, by leaps of one length, which miss only tenants that wait
-- with fewer tickets than a leap passes over.
local all = known <= most_found
local leap = math.ceil(waiting / most_found)
local found, seen, at, oldest, unreadable = {}, {}, 0, nil, 0
for _ = 1, most_found do
  if at >= waiting then break end
  local place = redis.call('ZRANGE', queue, at, at)[1]
  local tenant = string.match(place, '^([^|]*)|')
  local many = 1
  if tenant and not seen[tenant] then
    seen[tenant] = true
    local from, to = '[' .. tenant .. '|', '(' .. tenant .. '}'
    many = redis.call('ZLEXCOUNT', queue, from, to)
    if not all then place = redis.call('ZRANGEBYLEX', queue, from, to, 'LIMIT', 0, 1)[1] end
    local _, came, id = string.match(place, place_of)
    if came and (not oldest or came < oldest) then oldest = came end
    found[#found + 1] = { tenant = tenant, waiting = many, came = came or '0', id = id or '' }
  elseif not tenant then
    unreadable = unreadable + 1
  end
  at = at + (all and many or leap)
end

table.sort(found, function(one, other)
  return one.waiting > other.waiting or (one.waiting == other.waiting and one.tenant < other.tenant)
end)
local ids = {}
for place = 1, math.min(most_told, #found) do ids[place] = found[place].id end
local told = {}
for place, line in ipairs(lines_of(ids)) do
  local one = found[place]
  told[place] = { string.sub(one.tenant, 1, most_bytes), one.waiting, one.came, line }
end

return {
  { string.format('%.0f', clock[1] * 1000000 + clock[2]), waiting, redis.call('SCARD', permits),
    redis.call('ZCARD', followers), redis.call('HLEN', cache), redis.call('ZCARD', owners), known },
  redis.call('HMGET', state, unpack(names)),
  redis.call('ZREVRANGE', owners, 0, most_owners - 1, 'WITHSCORES'),
  lines_of(redis.call('SRANDMEMBER', permits, most_permits)),
  { #found, all and at >= waiting and 1 or 0, oldest or '0', unreadable },
  told,
}
