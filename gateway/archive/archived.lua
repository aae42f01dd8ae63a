-- What is archived of a tenant's outbox: takes entries for told, and says up to where all is.
--
-- That lies next before the oldest entry that is not archived, and not at the last one that is and is still there: what
-- was done with is gone, and of an outbox that began anew all that was before it is archived, or nowhere.
--
-- KEYS: the outbox. ARGV: the group, then entry ids.
-- Returns {the last entry up to which all is archived, how many wait, the oldest that waits or ''}; the first is '' where
-- nothing is known: there is no outbox, or it is new and empty. A group that is gone is made anew.

local outbox, group = KEYS[1], ARGV[1]
if redis.call('EXISTS', outbox) == 0 then return { '', 0, '' } end

local function seen()
  for _, found in ipairs(redis.call('XINFO', 'GROUPS', outbox)) do
    local facts = {}
    for place = 1, #found, 2 do facts[found[place]] = found[place + 1] end
    if facts['name'] == group then return facts['last-delivered-id'], facts['lag'] end
  end
end

-- Not by Lua's numbers, which have 53 bits.
local function before(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq == '0' then return string.format('%.0f', tonumber(ms) - 1) .. '-18446744073709551615' end
  local digits, borrow = {}, 1
  for place = #seq, 1, -1 do
    local digit = tonumber(string.sub(seq, place, place)) - borrow
    borrow = digit < 0 and 1 or 0
    digits[place] = string.format('%d', digit % 10)
  end
  return ms .. '-' .. (string.gsub(table.concat(digits), '^0+(%d)', '%1'))
end

local delivered, behind = seen()
if not delivered then
  redis.call('XGROUP', 'CREATE', outbox, group, '0')
  delivered, behind = seen()
end
if #ARGV > 1 then redis.call('XACK', outbox, group, unpack(ARGV, 2)) end

-- Redis does not always know it after entries were deleted; then at most a thousand are counted.
behind = behind or #redis.call('XRANGE', outbox, '(' .. delivered, '+', 'COUNT', 1000)
local pending = redis.call('XPENDING', outbox, group)
local oldest = pending[1] > 0 and pending[2]
if not oldest then
  local after = redis.call('XRANGE', outbox, '(' .. delivered, '+', 'COUNT', 1)
  oldest = after[1] and after[1][1]
end
if oldest then return { before(oldest), behind + pending[1], oldest } end
return { delivered ~= '0-0' and delivered or '', 0, '' }
