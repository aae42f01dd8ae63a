-- Give back what was taken of a route's budget and not spent; more was spent than taken where it is negative.
--
-- KEYS  what is spent of the day's budgets (hash)
-- ARGV  field, picodollars to give back
-- Of a day that Redis has lost there is nothing to give back: it would add to the next budget, and stay for ever.

local spent = redis.call('HGET', KEYS[1], ARGV[1])
if not spent then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', math.max(0, tonumber(spent) - tonumber(ARGV[2]))))
return 1
