-- A slot retains WAL from its creation on, so that a base backup that begins later finds all WAL that it needs.
-- A lost slot is dropped and created again, because the member that used it needs another base backup anyway. So is an
-- inactive slot on a primary that retains no WAL yet (create_idle_slots.sql).
WITH dropped AS MATERIALIZED (
    SELECT slot_name, pg_drop_replication_slot(slot_name)
    FROM pg_replication_slots
    WHERE slot_name = ANY ($1::text[])
        AND NOT active
        AND (wal_status = 'lost' OR (restart_lsn IS NULL AND NOT pg_is_in_recovery()))
)
SELECT pg_create_physical_replication_slot(wanted.name, true)
FROM (
    SELECT name, (SELECT count(*) FROM dropped) AS after_drop
    FROM unnest($1::text[]) AS name
) AS wanted
WHERE wanted.after_drop >= 0
    AND NOT EXISTS (SELECT FROM pg_replication_slots AS slot WHERE slot.slot_name = wanted.name)
