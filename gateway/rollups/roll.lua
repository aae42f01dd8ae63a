-- Writes what receipts add up to. Whoever adds reads the rows, adds what is new, and writes them whole: nothing is
-- written if anybody else has written since. So each entry of an outbox is counted once, whoever dies when.
--
-- KEYS  state, cursors, latest, counted, then the keys that are written
-- ARGV  Roll (adder.py), as MessagePack, then what is binary: the latest receipts, each row after its field, totals
-- Returns the next version, or an empty text where it is another one by now. Versions go by the time: a Redis that lost
-- what it had counts none of them again

local roll = cmsgpack.unpack(ARGV[1])
local state, cursors, latest, counted = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

if (redis.call('HGET', state, 'version') or '0') ~= roll.version then return '' end
local clock = redis.call('TIME')
local version = string.format('%.0f', math.max(tonumber(roll.version) + 1, clock[1] * 1000000 + clock[2]))
redis.call('HSET', state, 'version', version)

local key, value = 4, 1
local function next_key()
  key = key + 1
  return KEYS[key]
end
local function next_value()
  value = value + 1
  return ARGV[value]
end

for tenant, id in pairs(roll.cursors) do
  -- Where the count was lost it begins anew when it can be known (janitor.py): half of it would be wrong.
  if redis.call('HSET', cursors, tenant, id) == 1 or redis.call('HEXISTS', counted, tenant) == 1 then
    redis.call('HINCRBY', counted, tenant, roll.counted[tenant] or 0)
  end
end
for _ = 1, roll.latest do
  redis.call('XADD', latest, 'MAXLEN', '~', roll.keep_latest, '*', 'receipt', next_value())
end
for _, one in ipairs(roll.rows) do
  local rows = next_key()
  for _ = 1, one.count do
    local field = next_value()
    redis.call('HSET', rows, field, next_value())
  end
  redis.call('EXPIREAT', rows, one.ends)
end
for _, ends in ipairs(roll.totals) do
  redis.call('SET', next_key(), next_value(), 'EXAT', ends)
end
for _, one in ipairs(roll.seen) do
  local seen = next_key()
  for _, tenant in ipairs(one.tenants) do redis.call('SADD', seen, tenant) end
  redis.call('EXPIREAT', seen, one.ends)
end
return version
