-- Drops the slot of a change stream, if there is one; one that is read is not dropped but an error.
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %(slot)s
