-- Store the caller's feedback on a request, once, and post it to the outbox of outcomes.
--
-- KEYS  the feedback of the request, the outbox of outcomes
-- ARGV  the score, seconds to keep it, the outcome as JSON
-- Returns the score that is stored: this one or an earlier one

local held = redis.call('GET', KEYS[1])
if held then return held end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'outcome', ARGV[3])
return ARGV[1]
