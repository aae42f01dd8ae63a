-- Release the unspent part of a reservation. A negative amount adds to the spent amount.
--
-- KEYS  spent amounts of the day (hash)
-- ARGV  field, picodollars to release
-- A day that Redis lost is skipped: a new field would never expire.

local spent = redis.call('HGET', KEYS[1], ARGV[1])
if not spent then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', math.max(0, tonumber(spent) - tonumber(ARGV[2]))))
return 1
