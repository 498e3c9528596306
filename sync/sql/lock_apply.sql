-- Takes the lock of the only apply of a cell and view, if it is free. The connection holds the lock until it closes.
SELECT pg_try_advisory_lock(hashtextextended('palaver apply ' || $1, 0))
