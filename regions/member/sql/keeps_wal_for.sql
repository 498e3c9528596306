-- Whether this is a primary that keeps WAL for a standby: a base backup through that slot can begin.
SELECT NOT pg_is_in_recovery() AND EXISTS (
    SELECT FROM pg_replication_slots AS s WHERE s.slot_name = $1::text AND s.wal_status <> 'lost'
) AS ready
