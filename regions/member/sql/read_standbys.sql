SELECT
    application_name,
    sync_state,
    state = 'streaming' AS streaming,
    pg_wal_lsn_diff(pg_current_wal_flush_lsn(), flush_lsn)::bigint AS flush_lag_bytes,
    coalesce(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), replay_lsn), 0)::bigint AS replay_lag_bytes,
    coalesce(extract(epoch FROM flush_lag), 0)::float8 AS flush_lag_s
FROM pg_stat_replication
WHERE application_name = ANY ($1::text[])
    -- Not a connection that an agent keeps open: no WAL streams on it yet, or no receiver takes the WAL yet that the
    -- proxy has requested in advance.
    AND flush_lsn IS NOT NULL
