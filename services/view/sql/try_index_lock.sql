-- Does not wait for the lock: a waiting statement has a snapshot, and a concurrent build waits for all snapshots.
SELECT pg_try_advisory_lock($1)
