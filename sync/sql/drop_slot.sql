-- Drops the slot of a change stream if it exists. An active slot is an error.
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %(slot)s
