-- Slots that keep no WAL before somebody reads from them. To make one takes flushes, for which a failover would wait.
SELECT pg_create_physical_replication_slot(wanted.name, false)
FROM unnest($1::text[]) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots AS slot WHERE slot.slot_name = wanted.name)
