-- Settles intents of one tenant whose owner is gone. Of several processes that try, one settles each; a receipt that is
-- there already stays.
--
-- KEYS  intents of the gone owner, owners, then the receipt of each request
-- ARGV  the gone owner, time to live of a receipt (s), then per request: id, receipt
-- Returns the ids that this call settled

local intents, owners = KEYS[1], KEYS[2]
local owner, ttl = ARGV[1], ARGV[2]
local settled = {}

for place = 1, #KEYS - 2 do
  local receipt, id, value = KEYS[place + 2], ARGV[2 * place + 1], ARGV[2 * place + 2]
  if redis.call('HEXISTS', intents, id) == 1 then
    if redis.call('SET', receipt, value, 'EX', ttl, 'NX') then
      settled[#settled + 1] = id
    end
    redis.call('HDEL', intents, id)
  end
end
if redis.call('EXISTS', intents) == 0 then
  redis.call('ZREM', owners, owner)
end
return settled
