-- Keeps one ready page, unless the thread has moved on since it was read.
-- KEYS[1] the hash of the thread's pages, KEYS[2] the thread's version. ARGV: version of the page, field, bytes, seconds
-- that a page lives, fields at most, seconds that a version lives.
local kept = tonumber(redis.call('GET', KEYS[2]) or '-1')
local version = tonumber(ARGV[1])
if kept > version then
  return 0
end
if kept < version then
  redis.call('DEL', KEYS[1])
end
-- The version outlives each page that is kept under it, and each reader that has read the version before it.
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[6])
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
-- The first page limits the life of the hash and a later one does not prolong it: no page outlives its life.
local left = redis.call('TTL', KEYS[1])
if left < 0 or left > tonumber(ARGV[4]) then
  redis.call('EXPIRE', KEYS[1], ARGV[4])
end
return 1
