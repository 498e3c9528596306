-- Every transaction whose commit lies behind this LSN comes out of the slot.
SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %(slot)s
