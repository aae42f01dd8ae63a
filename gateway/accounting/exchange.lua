-- Admit and settle requests of one tenant, for one process. Limits and budgets are counted only here, so that two
-- processes cannot both use the last of a limit. Times are microseconds of Redis TIME. Process clocks are not used.
--
-- The script is idempotent: a lost reply is followed by the same request. Two calls may arrive in any order, since an
-- intent never follows its receipt.
--
-- KEYS  intents of the process, processes (owners), outbox, then the receipt of each admitted and each settled request,
--       then the window, the parallel slots and the budget of each scope
-- ARGV  the fields of `_TenantCall.encoded` (redis_ledger.py) as MessagePack. Amounts are picodollars (1e-12 USD) as text
--       of up to 19 digits
-- Returns ExchangeReply (verdict.py) as MessagePack

local request = cmsgpack.unpack(ARGV[1])
local intents, owners, outbox = KEYS[1], KEYS[2], KEYS[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local minute, slot_us, second = 60000000, 100000, 1000000
local shares = 100        -- parts of a rolling budget's period; they expire one by one
local keep_money_s = 34214400 -- 396 days, longer than any period; budgets.py has the same constants
local exact = 9007199254740992 -- 2^53: sums of integers below it are exact in Lua

local function whole(number)
  return string.format('%.0f', number)
end

-- Rolling sums: a hash with a field `<letter><slot>` for each name and time slot, and a field with the sum of each name.
local function ring(key, names, length, last)
  local r = { key = key, names = names, length = length, last = last, slot = math.floor(now / length),
              plus = {}, sums = {}, exact = true, touched = false }
  local held = redis.call('HMGET', key, 'from', unpack(names))
  r.from = math.min(tonumber(held[1] or r.slot) or r.slot, r.slot)
  for index, name in ipairs(names) do
    r.sums[name] = tonumber(held[index + 1] or '0')
    r.exact = r.exact and r.sums[name] < exact
  end
  -- A slot expires with its end.
  local expired = {}
  while r.from < r.slot - last do
    for _, name in ipairs(names) do expired[#expired + 1] = string.sub(name, 1, 1) .. whole(r.from) end
    r.from = r.from + 1
    if #expired >= 1000 or (r.from >= r.slot - last and #expired > 0) then
      for index, value in ipairs(redis.call('HMGET', key, unpack(expired))) do
        if value then
          local name = names[(index - 1) % #names + 1]
          r.sums[name] = r.sums[name] - tonumber(value)
          r.plus[name] = (r.plus[name] or 0) - tonumber(value)
        end
      end
      redis.call('HDEL', key, unpack(expired))
      expired, r.touched = {}, true
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
  local values = { 'from', whole(r.from) }
  for field, amount in pairs(r.plus) do
    local sum = r.exact and r.sums[field]
    if sum and sum < exact then
      values[#values + 1], values[#values + 2] = field, whole(sum)
    elseif amount ~= 0 then
      redis.call('HINCRBY', r.key, field, whole(amount))
    end
  end
  redis.call('HSET', r.key, unpack(values))
  redis.call('PEXPIRE', r.key, whole(math.ceil(r.length * (r.last + 2) / 1000)))
end

-- The number of months since year 0, from days since 1970-01-01.
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

-- The state of each scope. It is read at the first use and written at the end.
local first_scope = 3 + #request.admitted + #request.settled
local scopes = {}
for index, rule in ipairs(request.scopes) do
  local at = first_scope + 3 * (index - 1)
  scopes[index] = { rule = rule, window_key = KEYS[at + 1], parallel_key = KEYS[at + 2], budget_key = KEYS[at + 3] }
end

local function window(scope)
  scope.window = scope.window or ring(scope.window_key, { 'requests', 'tokens' }, slot_us, minute / slot_us)
  return scope.window
end

-- Parallel requests of this process in a scope.
local function own_parallel(scope)
  if not scope.own then
    scope.own_before = tonumber(redis.call('HGET', scope.parallel_key, request.owner) or '0')
    scope.own = scope.own_before
  end
  return scope.own
end

local living
local function in_parallel(scope)
  if not scope.elsewhere then
    if not living then
      living = {}
      local recent = redis.call('ZRANGEBYSCORE', owners, whole(now - request.lease_us), '+inf')
      for _, process in ipairs(recent) do living[process] = true end
      living[request.owner] = nil
    end
    scope.elsewhere = 0
    local held = redis.call('HGETALL', scope.parallel_key)
    for index = 1, #held, 2 do
      if living[held[index]] then scope.elsewhere = scope.elsewhere + tonumber(held[index + 1]) end
    end
  end
  return scope.elsewhere + own_parallel(scope)
end

local function count_parallel(scope, by)
  scope.own = math.max(0, own_parallel(scope) + by)
end

local function write_parallel(scope)
  if scope.own == scope.own_before then return end
  if scope.own > 0 then
    redis.call('HSET', scope.parallel_key, request.owner, whole(scope.own))
  else
    redis.call('HDEL', scope.parallel_key, request.owner)
  end
end

-- The hash of a budget: spent, reserved, raise and its end, and the events sent. Spending of a calendar period expires
-- with the period. Spending of a rolling period expires in parts.
local function budget(scope, charged)
  local b = scope.budget
  if b then return b end
  local key, terms = scope.budget_key, scope.rule.budget
  b = { key = key, plus = {} }
  scope.budget = b
  local held = redis.call('HMGET', key, 'period', 'spent', 'reserved', 'raise', 'raise_until', 'soft_told', 'hard_told',
                          'rolling_s')
  b.spent, b.reserved = tonumber(held[2] or '0'), tonumber(held[3] or '0')
  b.soft_told, b.hard_told = held[6], held[7]
  b.raise = tonumber(held[5] or '0') * second > now and tonumber(held[4] or '0') or 0
  -- A settlement has no limits. It uses the period of the last admission. Without one, the budget's first request
  -- continued while Redis was down, and the period of its charge is used.
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
    -- A rolling budget has no next period: its event is sent again after the length of the period.
    if terms and b.hard_told and tonumber(b.hard_told) <= now - rolling_s * second then b.hard_told = false end
    b.rolling = ring(key .. ':' .. whole(rolling_s), { 'usd' }, math.floor(rolling_s * second / shares), shares)
    b.spent = b.rolling.sums.usd
  end
  return b
end

-- Amounts of one exchange are added together and written at its end. Redis adds an amount that Lua cannot add exactly.
local function add_amount(b, field, pico)
  local sum = (b.plus[field] or 0) + tonumber(pico)
  if math.abs(sum) < exact and math.abs(tonumber(pico)) < exact then
    b.plus[field] = sum
  else
    redis.call('HINCRBY', b.key, field, pico)
  end
end

local function spend(b, pico)
  if pico == '0' then return end
  if b.rolling then
    add(b.rolling, b.rolling.slot, 'usd', tonumber(pico))
  elseif b.spent + tonumber(pico) < 0 then
    -- A process taken for dead reports a lower cost, and the period of the abandoned cost has ended.
    pico = whole(-b.spent)
    redis.call('HSET', b.key, 'spent', '0')
    b.plus.spent = 0
  else
    add_amount(b, 'spent', pico)
  end
  b.spent = b.spent + tonumber(pico)
  b.touched = true
end

local function reserve(b, pico, sign)
  if pico == '0' then return end
  add_amount(b, 'reserved', sign .. pico)
  b.reserved = b.reserved + tonumber(sign .. pico)
  b.touched = true
end

local function write_budget(b)
  for field, amount in pairs(b.plus) do
    if amount ~= 0 then redis.call('HINCRBY', b.key, field, whole(amount)) end
  end
  if b.touched then redis.call('EXPIRE', b.key, keep_money_s) end
  if b.rolling then write(b.rolling) end
end

local events = {}
local function add_event(index, kind, b)
  local terms = scopes[index].rule.budget
  events[#events + 1] = { scope = index, kind = kind, spent = whole(b.spent), reserved = whole(b.reserved),
                          most = whole(tonumber(terms.max) + b.raise), soft = terms.soft }
end

local function soft_line(index, b, terms)
  if terms.soft == '' then return false end
  local soft, used = tonumber(terms.soft), b.spent + b.reserved
  if used >= soft then
    if not b.soft_told then
      b.soft_told = '1'
      redis.call('HSET', b.key, 'soft_told', '1')
      add_event(index, 'soft', b)
    end
    return true
  end
  -- Send the event again only after the use was well below the limit, since reservations fluctuate.
  if b.soft_told and used < soft * 0.9 then
    redis.call('HDEL', b.key, 'soft_told')
    b.soft_told = false
  end
  return false
end

-- The time until `need` of a name fits. The oldest slots expire first.
local function room_in(r, name, most, need)
  local free, letter = most - r.sums[name], string.sub(name, 1, 1)
  local at = r.from
  while at <= r.slot do
    local fields = {}
    for slot = at, math.min(at + 199, r.slot) do fields[#fields + 1] = letter .. whole(slot) end
    for index, value in ipairs(redis.call('HMGET', r.key, unpack(fields))) do
      free = free + tonumber(value or '0')
      if free >= need then return (at + index + r.last) * r.length - now end
    end
    at = at + 200
  end
  return (r.slot + 1 + r.last) * r.length - now
end

local function refusal(index, limit, most, used, need, retry)
  return { limit = limit, scope = index, most = whole(most), used = whole(used), need = whole(need),
           retry_us = math.max(0, math.ceil(retry)) }
end

-- Check the limits of all scopes. Return nil, or the first exceeded limit.
local function check_speed(admission, tokens)
  for _, index in ipairs(admission.scopes) do
    local scope = scopes[index]
    local rule = scope.rule
    if rule.parallel > 0 and in_parallel(scope) >= rule.parallel then
      return refusal(index, 'parallel', rule.parallel, in_parallel(scope), 1, second)
    end
    if rule.rpm > 0 then
      local w = window(scope)
      if w.sums.requests >= rule.rpm then
        scope.request_room = scope.request_room or room_in(w, 'requests', rule.rpm, 1)
        return refusal(index, 'requests', rule.rpm, w.sums.requests, 1, scope.request_room)
      end
    end
    if rule.tpm > 0 then
      local w = window(scope)
      if w.sums.tokens + tokens > rule.tpm then
        local rooms = scope.token_rooms or {}
        scope.token_rooms = rooms
        rooms[tokens] = rooms[tokens] or (tokens > rule.tpm and 0 or room_in(w, 'tokens', rule.tpm, tokens))
        return refusal(index, 'tokens', rule.tpm, w.sums.tokens, tokens, rooms[tokens])
      end
    end
  end
end

local function check_budgets(admission, pico)
  for _, index in ipairs(admission.scopes) do
    local terms = scopes[index].rule.budget
    if terms then
      local b = budget(scopes[index])
      local most = tonumber(terms.max) + b.raise
      if b.spent + b.reserved + tonumber(pico) > most then
        return refusal(index, 'budget', most, b.spent + b.reserved, tonumber(pico), 0)
      end
    end
  end
end

-- The kinds of plans, the most expensive first: 1 as planned, 2 with shorter guidance, 3 the student alone.
local kinds = { warn = 1, shorten = 2, student_only = 3 }

local function variant(admission, least)
  for _, one in ipairs(admission.variants) do
    if one.kind >= least then return one end
  end
  return admission.variants[#admission.variants]
end

local function charge(id, admission, one)
  local facts = table.concat({ whole(math.floor(now / slot_us)), one.usd, whole(one.tokens) }, '|')
  redis.call('HSET', intents, id, facts .. '\n' .. one.intent)
  for _, index in ipairs(admission.scopes) do
    local scope = scopes[index]
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

-- The remainders for response headers: for each kind of limit, the smallest of all scopes.
local function left(admission)
  local remainders = {}
  for _, index in ipairs(admission.scopes) do
    local rule = scopes[index].rule
    for name, most in pairs({ requests = rule.rpm, tokens = rule.tpm }) do
      if most > 0 then
        local w = window(scopes[index])
        local rest = math.max(0, most - w.sums[name])
        if not remainders[name] or rest < remainders[name].left then
          local busy = w.sums[name] > 0
          remainders[name] = { most = most, left = rest, reset_us = busy and (w.slot + 1 + w.last) * w.length - now or 0 }
        end
      end
    end
  end
  return next(remainders) and remainders or nil
end

local function admit(admission)
  local held = redis.call('HGET', intents, admission.id)
  if held then
    local known = string.match(held, '^[^\n]*\n(.*)$')
    for _, one in ipairs(admission.variants) do
      if one.intent == known then return { variant = one.kind } end
    end
    return { variant = admission.variants[1].kind }
  end
  if admission.force then
    charge(admission.id, admission, admission.variants[1])
    return { variant = admission.variants[1].kind }
  end
  local least, soft = 1, false
  for _, index in ipairs(admission.scopes) do
    local terms = scopes[index].rule.budget
    if terms and soft_line(index, budget(scopes[index]), terms) then
      soft, least = true, math.max(least, kinds[terms.on_soft])
    end
  end
  local one = variant(admission, least)
  local no = check_budgets(admission, one.usd)
  if no and scopes[no.scope].rule.budget.on_hard == 'student_only' and one.kind < 3 then
    local alone = variant(admission, 3)
    if alone.kind == 3 then
      one, no = alone, check_budgets(admission, alone.usd)
    end
  end
  if no then
    local b = budget(scopes[no.scope])
    if not b.hard_told then
      b.hard_told = whole(now)
      redis.call('HSET', b.key, 'hard_told', b.hard_told)
      add_event(no.scope, 'hard', b)
    end
  else
    no = check_speed(admission, one.tokens)
  end
  if no then return { no = no, left = left(admission) } end
  charge(admission.id, admission, one)
  return { variant = one.kind, soft = soft, left = left(admission) }
end

-- Release the reservation of a request and count its use. `charges` states the charge in each scope, independent of
-- later policy edits. The line before the intent has the time and the amounts.
local function settle(one, held, spent)
  local slot, reserved, tokens
  if held then slot, reserved, tokens = string.match(held, '^(%d+)|(%d+)|(%d+)\n') end
  for _, charged in ipairs(one.charges) do
    local scope = scopes[charged.scope]
    -- An abandoned request keeps its estimated tokens.
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

-- A usage worker reads each entry once. The trimmer (usage/trimmer.py) bounds all outboxes together and counts deleted
-- entries.
local function post(receipt)
  redis.call('XADD', outbox, '*', 'receipt', receipt)
end

if #request.admitted > 0 or request.beat then redis.call('ZADD', owners, whole(now), request.owner) end

for index, one in ipairs(request.settled) do
  local receipt = KEYS[3 + #request.admitted + index]
  local held = redis.call('HGET', intents, one.id)
  if one.abandoned then
    if held then
      local first = redis.call('SET', receipt, one.receipt, 'EX', request.ttl_s, 'NX')
      if first then
        settled[#settled + 1] = one.id
        post(one.receipt)
      end
      settle(one, held, first and one.usd or false)
    end
  else
    local kept = redis.call('SET', receipt, one.receipt, 'EX', request.ttl_s, 'NX', 'GET')
    local spent = one.usd
    if kept then
      -- Quotes inside of a JSON string are escaped, so this matches the field only.
      if string.find(kept, '"status":"abandoned"', 1, true) then
        redis.call('SET', receipt, one.receipt, 'EX', request.ttl_s)
        replaced[#replaced + 1] = one.id
        post(one.receipt)
        -- The abandoned receipt has charged the whole reservation.
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

for index, one in ipairs(request.admitted) do
  if redis.call('EXISTS', KEYS[3 + index]) == 1 then
    verdicts[index] = { variant = one.variants[1].kind }
  else
    verdicts[index] = admit(one)
  end
end

if request.gone and redis.call('EXISTS', intents) == 0 then redis.call('ZREM', owners, request.owner) end

-- The remainder of each budget. Processes use it while Redis is down.
local rest
for index, scope in ipairs(scopes) do
  if scope.rule.budget and scope.budget then
    rest = rest or {}
    local most = tonumber(scope.rule.budget.max) + scope.budget.raise
    rest[index] = whole(math.max(0, most - scope.budget.spent - scope.budget.reserved))
  end
end
if rest then
  for index = 1, #scopes do rest[index] = rest[index] or '' end
end

for _, scope in ipairs(scopes) do
  if scope.window then write(scope.window) end
  write_parallel(scope)
  if scope.budget then write_budget(scope.budget) end
end

return cmsgpack.pack({ now_us = now, verdicts = verdicts, replaced = replaced, settled = settled, events = events,
                       left = rest })
