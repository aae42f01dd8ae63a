if ARGV[1] == 'bad' then return redis.error_reply('ERR bad') end
return { KEYS[1], ARGV[1] }
