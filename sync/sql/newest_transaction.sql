-- A transaction of its own, younger than all that have written anything by now.
SELECT pg_current_xact_id()::text
