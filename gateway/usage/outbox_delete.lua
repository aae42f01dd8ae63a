-- Deletes an empty outbox.
--
-- KEYS  outbox
-- Returns 0 if the outbox has entries, else 1

if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
return 1
