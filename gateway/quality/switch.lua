-- Switch the guidance of a scope off or on, with an entry in the audit trail.
--
-- KEYS  off, restored, version, audit (GuidanceOffKeys)
-- ARGV  scope, JSON of the switch or an empty string to switch on, a random word, actor, action, tenant, route,
--       seconds to keep the time of a restoration, maximum of audit entries
-- Returns the JSON of the switch before; an empty string where guidance was on

local off, restored, version, audit = unpack(KEYS)
local scope, json, word, actor, action, tenant, route, keep_s, max_audit = unpack(ARGV)
local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000000 + clock[2])

local before = string.match(redis.call('HGET', off, scope) or '', '|(.*)') or ''
if json ~= '' then
  redis.call('HSET', off, scope, now .. '|' .. json)
elseif before == '' then
  return before
else
  redis.call('HDEL', off, scope)
  redis.call('HSET', restored, scope, now)
  redis.call('EXPIRE', restored, keep_s)
end
redis.call('SET', version, word)
redis.call('XADD', audit, 'MAXLEN', '~', max_audit, '*', 'actor', actor, 'action', action, 'tenant', tenant,
  'subject', route, 'before', before, 'after', json)
return before
