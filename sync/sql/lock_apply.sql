-- One apply per cell and view; the lock lives as long as the connection that holds it.
SELECT pg_try_advisory_lock(hashtextextended('palaver apply ' || $1, 0))
