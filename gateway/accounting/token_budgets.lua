-- Registers key ids of tokens with a budget, and drops those whose period is over.
--
-- KEYS  a sorted set: key id -> the Unix seconds until which it is listed
-- ARGV  the largest number of key ids, then the seconds and the key id of each

for index = 2, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], 'GT', ARGV[index], ARGV[index + 1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', redis.call('TIME')[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[1]))
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
if last[2] then redis.call('EXPIREAT', KEYS[1], last[2]) end
