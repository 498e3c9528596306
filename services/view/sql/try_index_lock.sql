-- Tried, never waited for: a session that waits in a statement has a snapshot, for which a concurrent build waits.
SELECT pg_try_advisory_lock($1)
