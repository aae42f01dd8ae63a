-- Deletes a response.
--
-- KEYS  the response, ends, total (StoredResponseKeys)
-- ARGV  id, size that is counted in addition to the content
-- Returns 1, or 0 if there is no such response

local record, ends, total = unpack(KEYS)
if redis.call('EXISTS', record) == 0 then
  return 0
end
local size = string.format('%.0f', redis.call('STRLEN', record) + ARGV[2])
redis.call('UNLINK', record)
if redis.call('ZREM', ends, ARGV[1] .. '|' .. size) == 1 then
  redis.call('DECRBY', total, size)
end
return 1
