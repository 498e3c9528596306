-- On a standby, the physical slots from its time as primary would retain WAL forever, and its own logical slots would
-- prevent the synchronisation of the leader's slots, which have the same names (rule 19). A slot that retains no WAL
-- yet may stay.
SELECT pg_drop_replication_slot(slot_name)
FROM pg_replication_slots
WHERE NOT active AND NOT temporary AND NOT synced AND restart_lsn IS NOT NULL
