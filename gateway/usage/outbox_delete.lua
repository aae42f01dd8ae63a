-- Deletes an outbox that is empty.
--
-- KEYS  outbox
-- Returns whether there is none

if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
return 1
