-- The ledger's time, microseconds since 1970, up to which the view has all changes; 0 if unknown or in the future.
SELECT coalesce(max((extract(epoch FROM fresh_at) * 1000000)::bigint), 0) FROM checkpoint
WHERE cell = $1 AND fresh_at <= clock_timestamp()
