-- What is archived of a tenant's outbox: takes entries for told, and says up to where all is.
-- KEYS: the outbox. ARGV: the group, then entry ids.
-- Returns {the last entry up to which all is archived, how many wait, the oldest that waits or ''}.

local outbox, group = KEYS[1], ARGV[1]
if #ARGV > 1 then redis.call('XACK', outbox, group, unpack(ARGV, 2)) end

local delivered, behind = '0-0', 0
for _, found in ipairs(redis.call('XINFO', 'GROUPS', outbox)) do
  local facts = {}
  for place = 1, #found, 2 do facts[found[place]] = found[place + 1] end
  if facts['name'] == group then
    delivered = facts['last-delivered-id']
    -- Redis does not always know it after entries were deleted; then at most a thousand are counted.
    behind = facts['lag'] or #redis.call('XRANGE', outbox, '(' .. delivered, '+', 'COUNT', 1000)
  end
end

local pending = redis.call('XPENDING', outbox, group)
if pending[1] == 0 then
  local after = behind > 0 and redis.call('XRANGE', outbox, '(' .. delivered, '+', 'COUNT', 1) or {}
  return { delivered, behind, after[1] and after[1][1] or '' }
end

-- The entry before the oldest that was taken and not told of yet.
local oldest = pending[2]
local ms, seq = string.match(oldest, '^(%d+)-(%d+)$')
local before
if seq ~= '0' then
  -- Not by Lua's numbers, which have 53 bits.
  local digits, borrow = {}, 1
  for place = #seq, 1, -1 do
    local digit = tonumber(string.sub(seq, place, place)) - borrow
    borrow = digit < 0 and 1 or 0
    digits[place] = string.format('%d', digit % 10)
  end
  before = ms .. '-' .. (string.gsub(table.concat(digits), '^0+(%d)', '%1'))
else
  local last = redis.call('XREVRANGE', outbox, '(' .. oldest, '-', 'COUNT', 1)
  before = last[1] and last[1][1] or '0-0'
end
return { before, behind + pending[1], oldest }
