-- Whether this member is a primary with a slot that retains WAL for a standby: its base backup can begin.
SELECT NOT pg_is_in_recovery() AND EXISTS (
    SELECT FROM pg_replication_slots AS s WHERE s.slot_name = $1::text AND s.wal_status <> 'lost'
) AS ready
