-- Drops the pages of threads that moved on, leaves their new versions as tombstones for late writers, and then
-- publishes messages. When Redis refuses a step, the script ends there and publishes nothing.
-- The generation is read here: a caller that was cut off and comes late cannot drop pages of an old generation
-- and announce that as if it were the current one.
-- KEYS[1] the generation. ARGV: channel, seconds that a tombstone lives, number of messages, the messages, then the
-- name and the version of each thread.
local generation = redis.call('GET', KEYS[1])
if not generation then
  return redis.error_reply('NOGENERATION the page cache has no generation')
end
local messages = tonumber(ARGV[3])
for i = 4 + messages, #ARGV, 2 do
  local key = 'palaver:' .. generation .. ':thread:' .. ARGV[i]
  local version = ARGV[i + 1]
  local kept = redis.call('GET', key .. ':version')
  -- Pages that are new enough keep the end of their life.
  if not kept or tonumber(kept) < tonumber(version) then
    redis.call('DEL', key)
    redis.call('SET', key .. ':version', version, 'EX', ARGV[2])
  end
end
for i = 4, 3 + messages do
  redis.call('PUBLISH', ARGV[1], ARGV[i])
end
return messages
