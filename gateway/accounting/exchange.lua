-- What one process has to tell of one tenant's requests: those that ask to be admitted, and those that have their
-- receipt. All that a tenant or a key may use is counted here and nowhere else, so that no two processes can both take
-- the last of it. Times are microseconds of Redis TIME; no process clock is trusted.
--
-- To run it twice with the same news does no harm: a reply can be lost, and then the news is told again. Nor does it
-- matter which of two calls comes first: an intent never comes after its receipt.
--
-- KEYS  intents of the owner, owners, outbox, then the receipt of each request: the admitted first, then the settled; then of
--       each scope its window, its slots in use (parallel), and its budget
-- ARGV  News (verdict.py), as MessagePack. Money is in picodollars (1e-12 USD), as text: it may have 19 digits
-- Returns News' answer (verdict.py: Told), as MessagePack

local news = cmsgpack.unpack(ARGV[1])
local intents, owners, outbox = KEYS[1], KEYS[2], KEYS[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local minute, slot_us, second = 60000000, 100000, 1000000
local shares = 100        -- parts of a rolling budget's time that leave it one by one
local keep_money_s = 34214400 -- 396 days: longer than the longest period; budgets.py and speeds.py have these numbers too

local function whole(number)
  return string.format('%.0f', number)
end

-- Counts that leave after a time: a hash of `<letter><slot>` for each slot of time and name, and their sums by name.
local function ring(key, names, length, last)
  local r = { key = key, names = names, length = length, last = last, slot = math.floor(now / length),
              plus = {}, sums = {}, touched = false }
  local held = redis.call('HMGET', key, 'from', unpack(names))
  r.from = math.min(tonumber(held[1] or r.slot) or r.slot, r.slot)
  for place, name in ipairs(names) do r.sums[name] = tonumber(held[place + 1] or '0') end
  -- A slot has left when its last moment has.
  local gone = {}
  while r.from < r.slot - last do
    for _, name in ipairs(names) do gone[#gone + 1] = string.sub(name, 1, 1) .. whole(r.from) end
    r.from = r.from + 1
    if #gone >= 1000 or (r.from >= r.slot - last and #gone > 0) then
      for place, value in ipairs(redis.call('HMGET', key, unpack(gone))) do
        if value then
          local name = names[(place - 1) % #names + 1]
          r.sums[name] = r.sums[name] - tonumber(value)
          r.plus[name] = (r.plus[name] or 0) - tonumber(value)
        end
      end
      redis.call('HDEL', key, unpack(gone))
      gone, r.touched = {}, true
    end
  end
  return r
end

local function add(r, slot, name, amount)
  if amount == 0 or slot < r.from then return end
  local field = string.sub(name, 1, 1) .. whole(slot)
  r.plus[field] = (r.plus[field] or 0) + amount
  r.plus[name] = (r.plus[name] or 0) + amount
  r.sums[name] = r.sums[name] + amount
  r.touched = true
end

local function write(r)
  if not r.touched then return end
  redis.call('HSET', r.key, 'from', whole(r.from))
  for field, amount in pairs(r.plus) do
    if amount ~= 0 then redis.call('HINCRBY', r.key, field, whole(amount)) end
  end
  redis.call('PEXPIRE', r.key, whole(math.ceil(r.length * (r.last + 2) / 1000)))
end

-- Calendars: days since 1970-01-01 to year and month, and a month's first day.
local function month_of(days)
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local mp = math.floor((5 * (doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))) + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0)) * 12 + month - 1
end

local function period_of(budget)
  local seconds, count = math.floor(now / second), budget.count
  local days = math.floor(seconds / 86400)
  local passed = math.floor(seconds / (budget.unit == 'd' and 86400 or 3600))
  if budget.unit == 'mo' then passed = month_of(days) end
  if budget.unit == 'w' then passed = math.floor((days + 3) / 7) end
  return budget.unit .. whole(count) .. ':' .. whole(math.floor(passed / count))
end

-- What is known of each scope, read when it is first needed and written at the end.
local first_scope = 3 + #news.admitted + #news.settled
local scopes = {}
for place, rule in ipairs(news.scopes) do
  local at = first_scope + 3 * (place - 1)
  scopes[place] = { rule = rule, window_key = KEYS[at + 1], parallel_key = KEYS[at + 2], budget_key = KEYS[at + 3] }
end

local function window(scope)
  scope.window = scope.window or ring(scope.window_key, { 'requests', 'tokens' }, slot_us, minute / slot_us)
  return scope.window
end

local living
local function in_parallel(scope)
  if not scope.parallel then
    if not living then
      living = {}
      local heard_of = redis.call('ZRANGEBYSCORE', owners, whole(now - news.lease_us), '+inf')
      for _, owner in ipairs(heard_of) do living[owner] = true end
    end
    scope.parallel = 0
    local held = redis.call('HGETALL', scope.parallel_key)
    for place = 1, #held, 2 do
      if living[held[place]] then scope.parallel = scope.parallel + tonumber(held[place + 1]) end
    end
  end
  return scope.parallel
end

local function count_parallel(scope, by)
  if scope.parallel then scope.parallel = scope.parallel + by end
  if redis.call('HINCRBY', scope.parallel_key, news.owner, by) <= 0 then
    redis.call('HDEL', scope.parallel_key, news.owner)
  end
end

-- A budget is one hash: spent, reserved, raise and its end, and what was told of it. What is spent in a period of the
-- calendar goes with the period, what is spent in a rolling one goes by shares of it.
local function budget(scope, charged)
  local b = scope.budget
  if b then return b end
  local key, terms = scope.budget_key, scope.rule.budget
  b = { key = key }
  scope.budget = b
  local held = redis.call('HMGET', key, 'period', 'spent', 'reserved', 'raise', 'raise_until', 'soft_told', 'hard_told',
                          'rolling_s')
  b.spent, b.reserved = tonumber(held[2] or '0'), tonumber(held[3] or '0')
  b.soft_told, b.hard_told = held[6], held[7]
  b.raise = tonumber(held[5] or '0') * second > now and tonumber(held[4] or '0') or 0
  -- Who settles knows no limits, and goes by the periods of who was admitted last; or by those it was charged by, where
  -- nobody was yet: then the budget's first request went on while Redis was away.
  local lasts = terms
  if not terms and charged and charged.count > 0 and not held[1] and not held[8] then
    lasts = { aligned = charged.unit ~= 's', seconds = charged.count, unit = charged.unit, count = charged.count }
  end
  local rolling_s = tonumber(held[8] or '0')
  if lasts and rolling_s ~= (lasts.aligned and 0 or lasts.seconds) then
    rolling_s = lasts.aligned and 0 or lasts.seconds
    redis.call('HSET', key, 'rolling_s', whole(rolling_s))
    b.touched = true
  end
  if lasts and lasts.aligned then
    local period = period_of(lasts)
    if held[1] ~= period then
      redis.call('HSET', key, 'period', period, 'spent', '0')
      redis.call('HDEL', key, 'soft_told', 'hard_told')
      b.spent, b.soft_told, b.hard_told = 0, false, false
      b.touched = true
    end
  elseif rolling_s > 0 then
    -- It has no next period: what was told of it is news again after as long.
    if terms and b.hard_told and tonumber(b.hard_told) <= now - rolling_s * second then b.hard_told = false end
    b.rolling = ring(key .. ':' .. whole(rolling_s), { 'usd' }, math.floor(rolling_s * second / shares), shares)
    b.spent = b.rolling.sums.usd
  end
  return b
end

-- Money moves in commands and not in sums of Lua's, whose numbers have 16 digits.
local function spend(b, pico)
  if pico == '0' then return end
  if b.rolling then
    add(b.rolling, b.rolling.slot, 'usd', tonumber(pico))
  elseif b.spent + tonumber(pico) < 0 then
    -- A process that was taken for dead tells what it did cost, and what it was taken to cost left with its period.
    pico = whole(-b.spent)
    redis.call('HSET', b.key, 'spent', '0')
  else
    redis.call('HINCRBY', b.key, 'spent', pico)
  end
  b.spent = b.spent + tonumber(pico)
  b.touched = true
end

local function reserve(b, pico, sign)
  if pico == '0' then return end
  redis.call('HINCRBY', b.key, 'reserved', sign .. pico)
  b.reserved = b.reserved + tonumber(sign .. pico)
  b.touched = true
end

local events = {}
local function tell(place, kind, b)
  local terms = scopes[place].rule.budget
  events[#events + 1] = { scope = place, kind = kind, spent = whole(b.spent), reserved = whole(b.reserved),
                          most = whole(tonumber(terms.max) + b.raise), soft = terms.soft }
end

local function soft_line(place, b, terms)
  if terms.soft == '' then return false end
  local soft, used = tonumber(terms.soft), b.spent + b.reserved
  if used >= soft then
    if not b.soft_told then
      b.soft_told = '1'
      redis.call('HSET', b.key, 'soft_told', '1')
      tell(place, 'soft', b)
    end
    return true
  end
  -- Told again only after it was well below: what is reserved comes and goes.
  if b.soft_told and used < soft * 0.9 then
    redis.call('HDEL', b.key, 'soft_told')
    b.soft_told = false
  end
  return false
end

-- How long until `need` of a name fits again: the oldest slots leave first.
local function room_in(r, name, most, need)
  local free, letter = most - r.sums[name], string.sub(name, 1, 1)
  local at = r.from
  while at <= r.slot do
    local asked = {}
    for slot = at, math.min(at + 199, r.slot) do asked[#asked + 1] = letter .. whole(slot) end
    for place, value in ipairs(redis.call('HMGET', r.key, unpack(asked))) do
      free = free + tonumber(value or '0')
      if free >= need then return (at + place + r.last) * r.length - now end
    end
    at = at + 200
  end
  return (r.slot + 1 + r.last) * r.length - now
end

local function refusal(place, limit, most, used, need, retry)
  return { limit = limit, scope = place, most = whole(most), used = whole(used), need = whole(need),
           retry_us = math.max(0, math.ceil(retry)) }
end

-- Whether one request fits, in every scope; nil, or why not.
local function check_speed(asked, tokens)
  for _, place in ipairs(asked.scopes) do
    local scope = scopes[place]
    local rule = scope.rule
    if rule.parallel > 0 and in_parallel(scope) >= rule.parallel then
      return refusal(place, 'parallel', rule.parallel, in_parallel(scope), 1, second)
    end
    if rule.rpm > 0 then
      local w = window(scope)
      if w.sums.requests >= rule.rpm then
        scope.request_room = scope.request_room or room_in(w, 'requests', rule.rpm, 1)
        return refusal(place, 'requests', rule.rpm, w.sums.requests, 1, scope.request_room)
      end
    end
    if rule.tpm > 0 then
      local w = window(scope)
      if w.sums.tokens + tokens > rule.tpm then
        local rooms = scope.token_rooms or {}
        scope.token_rooms = rooms
        rooms[tokens] = rooms[tokens] or (tokens > rule.tpm and 0 or room_in(w, 'tokens', rule.tpm, tokens))
        return refusal(place, 'tokens', rule.tpm, w.sums.tokens, tokens, rooms[tokens])
      end
    end
  end
end

local function check_budgets(asked, pico)
  for _, place in ipairs(asked.scopes) do
    local terms = scopes[place].rule.budget
    if terms then
      local b = budget(scopes[place])
      local most = tonumber(terms.max) + b.raise
      if b.spent + b.reserved + tonumber(pico) > most then
        return refusal(place, 'budget', most, b.spent + b.reserved, tonumber(pico), 0)
      end
    end
  end
end

-- The kinds of plan, from the dearest down: 1 as asked, 2 with shorter guidance, 3 the student alone.
local kinds = { warn = 1, shorten = 2, student_only = 3 }

local function variant(asked, least)
  for _, one in ipairs(asked.variants) do
    if one.kind >= least then return one end
  end
  return asked.variants[#asked.variants]
end

local function charge(id, asked, one)
  local facts = table.concat({ whole(math.floor(now / slot_us)), one.usd, whole(one.tokens) }, '|')
  redis.call('HSET', intents, id, facts .. '\n' .. one.intent)
  for _, place in ipairs(asked.scopes) do
    local scope = scopes[place]
    local rule = scope.rule
    if rule.rpm > 0 or rule.tpm > 0 then
      local w = window(scope)
      add(w, w.slot, 'requests', 1)
      add(w, w.slot, 'tokens', one.tokens)
    end
    if rule.parallel > 0 then count_parallel(scope, 1) end
    if rule.budget then reserve(budget(scope), one.usd, '') end
  end
end

-- What the callers are told of their limits: of those that hold for the request the one with least left.
local function left(asked)
  local told = {}
  for _, place in ipairs(asked.scopes) do
    local rule = scopes[place].rule
    for name, most in pairs({ requests = rule.rpm, tokens = rule.tpm }) do
      if most > 0 then
        local w = window(scopes[place])
        local rest = math.max(0, most - w.sums[name])
        if not told[name] or rest < told[name].left then
          local busy = w.sums[name] > 0
          told[name] = { most = most, left = rest, reset_us = busy and (w.slot + 1 + w.last) * w.length - now or 0 }
        end
      end
    end
  end
  return next(told) and told or nil
end

local function admit(asked)
  local held = redis.call('HGET', intents, asked.id)
  if held then
    local known = string.match(held, '^[^\n]*\n(.*)$')
    for _, one in ipairs(asked.variants) do
      if one.intent == known then return { variant = one.kind } end
    end
    return { variant = asked.variants[1].kind }
  end
  if asked.force then
    charge(asked.id, asked, asked.variants[1])
    return { variant = asked.variants[1].kind }
  end
  local least, soft = 1, false
  for _, place in ipairs(asked.scopes) do
    local terms = scopes[place].rule.budget
    if terms and soft_line(place, budget(scopes[place]), terms) then
      soft, least = true, math.max(least, kinds[terms.on_soft])
    end
  end
  local one = variant(asked, least)
  local no = check_budgets(asked, one.usd)
  if no and scopes[no.scope].rule.budget.on_hard == 'student_only' and one.kind < 3 then
    local alone = variant(asked, 3)
    if alone.kind == 3 then
      one, no = alone, check_budgets(asked, alone.usd)
    end
  end
  if no then
    local b = budget(scopes[no.scope])
    if not b.hard_told then
      b.hard_told = whole(now)
      redis.call('HSET', b.key, 'hard_told', b.hard_told)
      tell(no.scope, 'hard', b)
    end
  else
    no = check_speed(asked, one.tokens)
  end
  if no then return { no = no, left = left(asked) } end
  charge(asked.id, asked, one)
  return { variant = one.kind, soft = soft, left = left(asked) }
end

-- Gives back what a request reserved, and counts what it did use. `charges` says what it was charged for, whatever the
-- policy says by now; when, and how much, stands before its intent.
local function settle(one, held, spent)
  local slot, reserved, tokens
  if held then slot, reserved, tokens = string.match(held, '^(%d+)|(%d+)|(%d+)\n') end
  for _, charged in ipairs(one.charges) do
    local scope = scopes[charged.scope]
    -- What nobody counted stays at its estimate.
    if slot and charged.window and not one.abandoned then add(window(scope), tonumber(slot), 'tokens', one.tokens - tonumber(tokens)) end
    if slot and charged.parallel then count_parallel(scope, -1) end
    if charged.budget then
      local b = budget(scope, charged)
      if slot then reserve(b, reserved, '-') end
      if spent then spend(b, spent) end
    end
  end
end

local verdicts, replaced, settled = {}, {}, {}

-- A usage worker reads each receipt here once. The trimmer (usage/trimmer.py) bounds all outboxes together, and counts what
-- it deletes. A receipt that replaces an abandoned one has that one as `instead`, for processes of the previous version.
local function post(receipt, ...)
  redis.call('XADD', outbox, '*', 'receipt', receipt, ...)
end

if #news.admitted > 0 or news.beat then redis.call('ZADD', owners, whole(now), news.owner) end

for place, one in ipairs(news.settled) do
  local receipt = KEYS[3 + #news.admitted + place]
  local held = redis.call('HGET', intents, one.id)
  if one.abandoned then
    if held then
      local first = redis.call('SET', receipt, one.receipt, 'EX', news.ttl_s, 'NX')
      if first then
        settled[#settled + 1] = one.id
        post(one.receipt)
      end
      settle(one, held, first and one.usd or false)
    end
  else
    local kept = redis.call('SET', receipt, one.receipt, 'EX', news.ttl_s, 'NX', 'GET')
    local spent = one.usd
    if kept then
      -- Inside of a text the quotes would be escaped.
      if string.find(kept, '"status":"abandoned"', 1, true) then
        redis.call('SET', receipt, one.receipt, 'EX', news.ttl_s)
        replaced[#replaced + 1] = one.id
        post(one.receipt, 'instead', kept)
        -- It was taken to cost all that it had reserved.
        spent = whole(tonumber(one.usd) - math.floor(tonumber(cjson.decode(kept).cost_usd) * 1e12 + 0.5))
      else
        spent = false
      end
    else
      post(one.receipt)
    end
    settle(one, held, spent)
  end
  if held then redis.call('HDEL', intents, one.id) end
end

for place, one in ipairs(news.admitted) do
  if redis.call('EXISTS', KEYS[3 + place]) == 1 then
    verdicts[place] = { variant = one.variants[1].kind }
  else
    verdicts[place] = admit(one)
  end
end

if news.gone and redis.call('EXISTS', intents) == 0 then redis.call('ZREM', owners, news.owner) end

-- What is left of each budget: a process shares it out while it cannot ask.
local rest
for place, scope in ipairs(scopes) do
  if scope.rule.budget and scope.budget then
    rest = rest or {}
    local most = tonumber(scope.rule.budget.max) + scope.budget.raise
    rest[place] = whole(math.max(0, most - scope.budget.spent - scope.budget.reserved))
  end
end
if rest then
  for place = 1, #scopes do rest[place] = rest[place] or '' end
end

for _, scope in ipairs(scopes) do
  if scope.window then write(scope.window) end
  if scope.budget and scope.budget.touched then redis.call('EXPIRE', scope.budget.key, keep_money_s) end
  if scope.budget and scope.budget.rolling then write(scope.budget.rolling) end
end

return cmsgpack.pack({ now_us = now, verdicts = verdicts, replaced = replaced, settled = settled, events = events,
                       left = rest })
