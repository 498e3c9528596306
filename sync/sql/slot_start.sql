-- Every transaction whose commit lies behind this LSN comes out of the slot; none does when it was invalidated.
SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %(slot)s AND invalidation_reason IS NULL
