-- Count rejected requests by hour and by day.
--
-- KEYS  the start of the names of the hashes: their names end in the length and the start of the period, in seconds
-- ARGV  most rows of a hash, the tenant of rows beyond it, the number of periods; for each period its length and the
--       seconds for which it is kept; then for each row the status, the error label, the tenant or '', and the number
--
-- Invented tenants or errors cannot enlarge a hash: a row beyond the limit is counted for all tenants together.

local max_rows, other, periods = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local now_s = tonumber(redis.call('TIME')[1])
for period = 1, periods do
  local seconds, kept_s = tonumber(ARGV[2 + 2 * period]), tonumber(ARGV[3 + 2 * period])
  local start = now_s - now_s % seconds
  local key = string.format('%s:%d:%d', KEYS[1], seconds, start)
  for index = 4 + 2 * periods, #ARGV, 4 do
    local begin, tenant = ARGV[index] .. ' ' .. ARGV[index + 1] .. ' ', ARGV[index + 2]
    if redis.call('HEXISTS', key, begin .. tenant) == 0 and redis.call('HLEN', key) >= max_rows then tenant = other end
    redis.call('HINCRBY', key, begin .. tenant, ARGV[index + 3])
  end
  redis.call('EXPIREAT', key, start + seconds + kept_s)
end
