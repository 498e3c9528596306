-- Assigns a transaction id, which is higher than that of every transaction that has written anything so far.
SELECT pg_current_xact_id()::text
