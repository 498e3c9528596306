-- The slot delivers every transaction that commits after this LSN. No row if the slot is missing or invalidated.
SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %(slot)s AND invalidation_reason IS NULL
