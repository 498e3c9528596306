-- A slot is copied to a standby only once it has moved past what the standby began with, and it moves over these records
-- alone; by itself PostgreSQL writes one each 15 s, for which a leader that is lost would take the streams with it.
SELECT pg_log_standby_snapshot()
