-- Reserve the largest cost of a comparison from its route's budget of the day.
--
-- KEYS  spent amounts of the day (hash)
-- ARGV  field, cost and budget in picodollars, seconds to keep the hash
-- Returns 1 if the budget had room, otherwise 0

local spent = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if spent + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return 0 end
redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
