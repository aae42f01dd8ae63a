-- What one process has to tell of one tenant's requests: those it admitted, and those that have their receipt.
-- To run it twice with the same news does no harm: a reply can be lost, and then the news is told again. Nor does it
-- matter which of two calls comes first: an intent never comes after its receipt.
--
-- KEYS  intents of this owner, owners, then the receipt of each request: the admitted first, then the settled
-- ARGV  owner, time to live of a receipt (s), count of admitted, then per request: id, and its intent or its receipt
-- Returns the ids whose receipt took the place of an abandoned one

local intents, owners = KEYS[1], KEYS[2]
local owner, ttl, admitted = ARGV[1], ARGV[2], tonumber(ARGV[3])
local replaced = {}

if admitted > 0 then
  local clock = redis.call('TIME')
  redis.call('ZADD', owners, string.format('%.0f', clock[1] * 1000000 + clock[2]), owner)
end

for place = 1, #KEYS - 2 do
  local receipt, id, value = KEYS[place + 2], ARGV[2 * place + 2], ARGV[2 * place + 3]
  if place <= admitted then
    if redis.call('EXISTS', receipt) == 0 then
      redis.call('HSET', intents, id, value)
    end
  else
    local kept = redis.call('SET', receipt, value, 'EX', ttl, 'NX', 'GET')
    -- Inside of a text the quotes would be escaped.
    if kept and string.find(kept, '"status":"abandoned"', 1, true) then
      redis.call('SET', receipt, value, 'EX', ttl)
      replaced[#replaced + 1] = id
    end
    redis.call('HDEL', intents, id)
  end
end
return replaced
