-- Count a comparison, and switch the guidance of its route off if guided answers agree too little with the teacher's.
--
-- A sequential test, the e-CUSUM (Shin, Ramdas and Rinaldo, 2024): `evidence` is the logarithm of the wealth of a gambler
-- who bets that the next agreement is below the bound. It restarts at 0 when it falls below 0.
--
-- KEYS  off, restored, version, audit (GuidanceOffKeys), window
-- ARGV  tenant, route, arrival of the request in microseconds, agreement from 0 to 1, bound, fewest comparisons,
--       evidence that decides, engine that answers then, a random word, seconds to keep the window, maximum of audit entries
-- Returns 1, the number of comparisons and their mean if this call switched guidance off, otherwise 0

local off, restored, version, audit, window = unpack(KEYS)
local tenant, route = ARGV[1], ARGV[2]
local agreement, bound, min_samples, enough = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local answer_by, word, keep_s, max_audit = ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local scopes = { '*', tenant, tenant .. '/' .. route }
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

for _, switch in ipairs(redis.call('HMGET', off, unpack(scopes))) do
  if switch then return { 0 } end
end
local since = 0
for _, at in ipairs(redis.call('HMGET', restored, unpack(scopes))) do
  since = math.max(since, tonumber(at or '0'))
end
if tonumber(ARGV[3]) < since then return { 0 } end

-- The window is one line: its beginning, number of comparisons, sum of agreements, sum of their squares, evidence.
local began, samples, sum, squares, evidence = string.match(
  redis.call('GET', window) or '', '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
began, samples, sum, squares, evidence =
  tonumber(began), tonumber(samples), tonumber(sum), tonumber(squares), tonumber(evidence)
if not evidence or began < since then
  began, samples, sum, squares, evidence = now, 0, 0, 0, 0
end

-- The bet depends on earlier comparisons only. The largest bet loses at most half of the wealth.
local variance = samples > 0 and math.max(0, squares - sum * sum / samples) or 0
variance = (variance + 0.25) / (samples + 1)
local gap = bound - (sum + bound) / (samples + 1)
local largest = 0.5 / math.max(1 - bound, 0.05)
local bet = gap > 0 and gap / (variance + gap * gap) or 0
bet = math.min(largest, math.max(math.min(0.5, largest), bet))
evidence = evidence + math.log(1 + bet * (bound - agreement))
samples, sum, squares = samples + 1, sum + agreement, squares + agreement * agreement

if evidence <= 0 then
  redis.call('DEL', window)
  return { 0 }
end
if evidence < enough or samples < min_samples then
  redis.call('SET', window, string.format('%.0f %d %.17g %.17g %.17g', began, samples, sum, squares, evidence),
    'EX', keep_s)
  return { 0 }
end

local mean = string.format('%.3f', sum / samples)
local json = cjson.encode({ by = 'quality', actor = 'quality', answer_by = answer_by, reason = string.format(
  'Guided answers agreed %s with the teacher in %d comparisons. min_agreement is %s.', mean, samples, ARGV[5]) })
redis.call('HSET', off, scopes[3], string.format('%.0f|', now) .. json)
redis.call('SET', version, word)
redis.call('DEL', window)
redis.call('XADD', audit, 'MAXLEN', '~', max_audit, '*', 'actor', 'quality', 'action', 'guidance.off', 'tenant', tenant,
  'subject', route, 'before', '', 'after', json)
return { 1, samples, mean }
