-- The replayed LSN of a standby, and the start of PostgreSQL. NULL on a primary.
SELECT
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text END AS replayed,
    pg_postmaster_start_time()::text AS started
