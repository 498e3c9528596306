-- Slots that retain no WAL until a standby reads from them. A failover would wait for the flushes of creating a slot.
SELECT pg_create_physical_replication_slot(wanted.name, false)
FROM unnest($1::text[]) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots AS slot WHERE slot.slot_name = wanted.name)
