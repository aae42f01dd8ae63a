-- Takes from a tenant's outbox what is both added up and archived, and says what is left.
--
-- KEYS  outbox
-- ARGV  the first entry that is to stay
-- Returns how many there are, how many there ever were, and the id of the first one, or an empty text

redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1])
local facts = redis.call('XINFO', 'STREAM', KEYS[1])
local by_name = {}
for place = 1, #facts, 2 do by_name[facts[place]] = facts[place + 1] end
local first = by_name['first-entry']
return { by_name['length'], by_name['entries-added'], first and first[1] or '' }
