-- What a primary kept for others would hold back WAL on a standby for ever, and a change stream's slot of its own would
-- stand in the way of the leader's, which is copied under the same name (rule 19). One that keeps nothing yet may stay.
SELECT pg_drop_replication_slot(slot_name)
FROM pg_replication_slots
WHERE NOT active AND NOT temporary AND NOT synced AND restart_lsn IS NOT NULL
