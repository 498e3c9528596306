-- For each logical slot: the WAL that the ledger retains for it, and whether a walsender reads it.
SELECT
    slot_name,
    coalesce(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn), 0)::bigint AS retained_bytes,
    active,
    coalesce(wal_status, 'lost') AS wal_status
FROM pg_replication_slots
WHERE slot_type = 'logical' AND NOT temporary
