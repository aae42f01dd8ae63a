-- Store the receipt of a device's report, once and before its deadline by Redis TIME.
--
-- KEYS  the receipt, the tenant's outbox, the tenant's counter of offline answers, the savings of the reporting API key
-- ARGV  the receipt as JSON, seconds to keep it, the deadline in Unix seconds ('' for none), the limit of offline
--       answers per hour ('' where the report is for guidance), the report's savings in picodollars ('' where it saves
--       nothing), the largest savings of the key per day, the receipt without savings
-- Returns 'closed', 'expired', 'full', 'written', or 'uncounted': written without savings

if redis.call('EXISTS', KEYS[1]) == 1 then return 'closed' end
local now_s = tonumber(redis.call('TIME')[1])
if ARGV[3] ~= '' and now_s > tonumber(ARGV[3]) then return 'expired' end
if ARGV[4] ~= '' then
  if tonumber(redis.call('GET', KEYS[3]) or '0') >= tonumber(ARGV[4]) then return 'full' end
  if redis.call('INCR', KEYS[3]) == 1 then redis.call('EXPIRE', KEYS[3], 3600) end
end
local receipt, outcome = ARGV[7], 'uncounted'
if ARGV[5] ~= '' then
  local day = string.format('%d', math.floor(now_s / 86400))
  if redis.call('HGET', KEYS[4], 'day') ~= day then
    redis.call('DEL', KEYS[4])
    redis.call('HSET', KEYS[4], 'day', day)
    redis.call('EXPIRE', KEYS[4], 172800)
  end
  local saved = tonumber(redis.call('HGET', KEYS[4], 'saved') or '0')
  if saved + tonumber(ARGV[5]) <= tonumber(ARGV[6]) then
    redis.call('HINCRBY', KEYS[4], 'saved', ARGV[5])
    receipt, outcome = ARGV[1], 'written'
  end
end
redis.call('SET', KEYS[1], receipt, 'EX', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'receipt', receipt)
return outcome
