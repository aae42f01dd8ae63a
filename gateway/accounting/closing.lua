-- Store the receipt of a device's report, once and before its deadline by Redis TIME.
--
-- KEYS  the receipt, the tenant's outbox, the tenant's counter of offline answers
-- ARGV  the receipt as JSON, seconds to keep it, the deadline in Unix seconds ('' for none), the limit of offline
--       answers per hour ('' where the report is for guidance)
-- Returns 'closed', 'expired', 'full' or 'written'

if redis.call('EXISTS', KEYS[1]) == 1 then return 'closed' end
if ARGV[3] ~= '' and tonumber(redis.call('TIME')[1]) > tonumber(ARGV[3]) then return 'expired' end
if ARGV[4] ~= '' then
  if tonumber(redis.call('GET', KEYS[3]) or '0') >= tonumber(ARGV[4]) then return 'full' end
  if redis.call('INCR', KEYS[3]) == 1 then redis.call('EXPIRE', KEYS[3], 3600) end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'receipt', ARGV[1])
return 'written'
