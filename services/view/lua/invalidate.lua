-- Drops the pages of threads that moved on and leaves their new versions as tombstones for late writers.
-- KEYS the threads' hashes. ARGV[1] seconds to live, then one version for each key.
for i, key in ipairs(KEYS) do
  local version = ARGV[i + 1]
  local kept = redis.call('HGET', key, 'version')
  if not kept or tonumber(kept) < tonumber(version) then
    redis.call('DEL', key)
    redis.call('HSET', key, 'version', version)
  end
  redis.call('EXPIRE', key, ARGV[1])
end
return #KEYS
