-- The logical slots of this database. It returns all of them, because a replication connection accepts no parameters.
SELECT slot_name, active_pid, confirmed_flush_lsn::text, wal_status, pg_is_in_recovery()
FROM pg_replication_slots
WHERE slot_type = 'logical' AND database = current_database()
