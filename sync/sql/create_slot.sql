-- Creates the slot of a change stream if it is missing; with failover, so that the standbys copy it (rule 19).
SELECT pg_create_logical_replication_slot(%(slot)s, 'pgoutput', false, false, true)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s)
