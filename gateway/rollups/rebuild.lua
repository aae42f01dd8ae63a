-- Making rows anew, beside those that are read: its beginning, its life, and its end. Times are Unix seconds of Redis.
--
-- Up to an entry of each outbox, the cut, receipts come from the archive; what lies beyond is added up from the outbox
-- once the new rows are read, and until then stays there. A lease holds it: who dies over it does not hold it for ever.
--
-- KEYS  state, cursors, archived, holds, builds, counted, tenants, the new generation's state (renew, switch)
-- ARGV  what to do, then for
--       begin   how long its lease is
--       renew   the generation, how long its lease is; returns 0 where its lease has lapsed
--       again   the same; the cuts are read anew
--       switch  the generation, how often outboxes were cut when its cuts were read, what is the cut of tenants without
--               one of their own, and the cuts, as MessagePack; returns 1, 0 where its lease has lapsed, -1 where an
--               outbox was cut meanwhile
-- begin and again return the generation, how often outboxes were cut, the time in milliseconds, and tenants with their
-- cuts one after another: empty where nothing is archived

local state, cursors, archived, holds = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local builds, counted, tenants, build = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local clock = redis.call('TIME')
local now = tonumber(clock[1])
local keep_old_s = 60

local function lives(generation)
  return tonumber(redis.call('HGET', builds, generation) or '0') > now
end
local function hold(generation, lease_s)
  local till = string.format('%.0f', now + lease_s)
  redis.call('HSET', builds, generation, till)
  redis.call('HSET', state, 'held_until', till)
end
local function cuts(generation)
  local done, told = {}, {}
  local pairs_of = redis.call('HGETALL', archived)
  for place = 1, #pairs_of, 2 do done[pairs_of[place]] = pairs_of[place + 1] end
  redis.call('DEL', holds)
  for _, tenant in ipairs(redis.call('SMEMBERS', tenants)) do
    told[#told + 1] = tenant
    told[#told + 1] = done[tenant] or ''
    if done[tenant] then redis.call('HSET', holds, tenant, done[tenant]) end
  end
  local ms = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
  return { generation, redis.call('HGET', state, 'cuts') or '0', ms, told }
end

if ARGV[1] == 'begin' then
  for _, one in ipairs(redis.call('HKEYS', builds)) do
    if lives(one) and redis.call('HGET', state, 'building') == one then return { '' } end
  end
  local generation = string.format('%.0f', redis.call('HINCRBY', state, 'generations', 1))
  redis.call('HSET', state, 'building', generation)
  hold(generation, tonumber(ARGV[2]))
  return cuts(generation)
end

local generation = ARGV[2]
if not lives(generation) then return ARGV[1] == 'again' and { '' } or 0 end
if ARGV[1] == 'renew' or ARGV[1] == 'again' then
  hold(generation, tonumber(ARGV[3]))
  redis.call('EXPIRE', build, 86400)
  return ARGV[1] == 'again' and cuts(generation) or 1
end

if (redis.call('HGET', state, 'cuts') or '0') ~= ARGV[3] then return -1 end
local cut = cmsgpack.unpack(ARGV[5])
-- Counts of what came before a cursor do not hold for another cursor.
redis.call('DEL', cursors, counted, holds, build)
for _, tenant in ipairs(redis.call('SMEMBERS', tenants)) do
  redis.call('HSET', cursors, tenant, cut[tenant] or ARGV[4])
end
redis.call('HSET', builds, redis.call('HGET', state, 'generation') or '0', string.format('%.0f', now + keep_old_s))
redis.call('HDEL', builds, generation)
redis.call('HDEL', state, 'held_until', 'building')
redis.call('HSET', state, 'generation', generation)
local version = tonumber(redis.call('HGET', state, 'version') or '0')
redis.call('HSET', state, 'version', string.format('%.0f', math.max(version + 1, clock[1] * 1000000 + clock[2])))
return 1
