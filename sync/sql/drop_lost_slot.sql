-- Drops a slot that brings nothing any more, so that it can be made anew.
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
WHERE slot_name = %(slot)s AND (invalidation_reason IS NOT NULL OR wal_status = 'lost') AND NOT active
