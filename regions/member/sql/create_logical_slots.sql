-- Rule 19: with failover = true, PostgreSQL synchronises each slot to the standbys.
SELECT pg_create_logical_replication_slot(wanted.name, 'pgoutput', false, false, true)
FROM unnest($1::text[]) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = wanted.name)
