SELECT
    slot_name,
    active,
    coalesce(wal_status = 'lost' OR invalidation_reason IS NOT NULL, false) AS lost,
    coalesce(pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END,
        restart_lsn
    ), 0)::bigint AS retained_bytes
FROM pg_replication_slots
WHERE NOT temporary
