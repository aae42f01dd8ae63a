#!lua flags=no-writes
-- The state of one teacher's scheduler for operators, in one round trip. The scan is bounded, so that a long queue does
-- not block Redis: it finds the waiting tenants by jumps through the queue, which is ordered by tenant. view.py decodes
-- the result.
--
-- KEYS  queue, tickets, ends, permits, flights, followers, passes, idle, owners, state, cache  (TeacherKeys)
-- ARGV  limits: tenants to scan, tenants to return, permits, processes, bytes of a line; then names in the state
-- Returns {now, waiting, in flight, followers, cached entries, processes, tenants in the fair order},
--       {values of the state}, {process, time of its last exchange, ...}, {line of a permit, ...},
--       {tenants found, 1 if these are all that wait, arrival of the oldest of their tickets or 0, unreadable members},
--       {{tenant, waiting, arrival of its first ticket or 0, that ticket's line}, ...}
--       A missing line is ''.

local queue, tickets, permits, followers, passes = KEYS[1], KEYS[2], KEYS[4], KEYS[6], KEYS[7]
local owners, state, cache = KEYS[9], KEYS[10], KEYS[11]
local max_found, max_returned, max_permits = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_processes, max_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local names = { unpack(ARGV, 6) }
-- The format that scheduler.lua writes.
local member_pattern = '^([^|]*)|(' .. string.rep('%d', 16) .. ')|(.*)$'
local clock = redis.call('TIME')

local function lines_of(ids)
  local lines = {}
  if #ids > 0 then
    for i, line in ipairs(redis.call('HMGET', tickets, unpack(ids))) do
      lines[i] = string.sub(line or '', 1, max_bytes)
    end
  end
  return lines
end

local waiting, known = redis.call('ZCARD', queue), redis.call('ZCARD', passes)

-- Jump from tenant to tenant. With too many tenants, jump by a fixed length, which misses only tenants with fewer tickets
-- than that length.
local all = known <= max_found
local jump = math.ceil(waiting / max_found)
local found, seen, at, oldest, unreadable = {}, {}, 0, nil, 0
for _ = 1, max_found do
  if at >= waiting then break end
  local member = redis.call('ZRANGE', queue, at, at)[1]
  local tenant = string.match(member, '^([^|]*)|')
  local count = 1
  if tenant and not seen[tenant] then
    seen[tenant] = true
    local from, to = '[' .. tenant .. '|', '(' .. tenant .. '}'
    count = redis.call('ZLEXCOUNT', queue, from, to)
    if not all then member = redis.call('ZRANGEBYLEX', queue, from, to, 'LIMIT', 0, 1)[1] end
    local _, since, id = string.match(member, member_pattern)
    if since and (not oldest or since < oldest) then oldest = since end
    found[#found + 1] = { tenant = tenant, waiting = count, since = since or '0', id = id or '' }
  elseif not tenant then
    unreadable = unreadable + 1
  end
  at = at + (all and count or jump)
end

table.sort(found, function(one, other)
  return one.waiting > other.waiting or (one.waiting == other.waiting and one.tenant < other.tenant)
end)
local ids = {}
for i = 1, math.min(max_returned, #found) do ids[i] = found[i].id end
local result = {}
for i, line in ipairs(lines_of(ids)) do
  local tenant = found[i]
  result[i] = { string.sub(tenant.tenant, 1, max_bytes), tenant.waiting, tenant.since, line }
end

return {
  { string.format('%.0f', clock[1] * 1000000 + clock[2]), waiting, redis.call('SCARD', permits),
    redis.call('ZCARD', followers), redis.call('HLEN', cache), redis.call('ZCARD', owners), known },
  redis.call('HMGET', state, unpack(names)),
  redis.call('ZREVRANGE', owners, 0, max_processes - 1, 'WITHSCORES'),
  lines_of(redis.call('SRANDMEMBER', permits, max_permits)),
  { #found, all and at >= waiting and 1 or 0, oldest or '0', unreadable },
  result,
}
