-- Register values of a label, and return the values that the process does not know yet.
--
-- KEYS  a sorted set: value -> its number, from 1
-- ARGV  most values, seconds for which the set is kept, the last number that the process knows, most values to return,
--       then the new values
-- Returns the number of values, and the values with a higher number, in their order

local most, after = tonumber(ARGV[1]), ARGV[3]
local count = redis.call('ZCARD', KEYS[1])
for index = 5, #ARGV do
  if count >= most then break end
  if redis.call('ZADD', KEYS[1], 'NX', count + 1, ARGV[index]) == 1 then count = count + 1 end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return { count, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. after, '+inf', 'LIMIT', 0, ARGV[4]) }
