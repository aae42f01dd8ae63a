-- Add a comparison to the row of its tenant, route and length, of one day. Beyond so many rows there is one for all.
--
-- KEYS  the rows of the day (hash)
-- ARGV  field, the field of all others, most rows, seconds to keep them, then what to add: whole numbers
-- A row is its sums with a space between them.

local field = ARGV[1]
local held = redis.call('HGET', KEYS[1], field)
if not held and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  field = ARGV[2]
  held = redis.call('HGET', KEYS[1], field)
end
local sums = {}
for number in string.gmatch(held or '', '%S+') do sums[#sums + 1] = tonumber(number) end
for place = 5, #ARGV do
  sums[place - 4] = string.format('%.0f', (sums[place - 4] or 0) + tonumber(ARGV[place]))
end
redis.call('HSET', KEYS[1], field, table.concat(sums, ' '))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
