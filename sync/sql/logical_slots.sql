-- The logical slots of this database; a replication connection takes no parameters, so all of them.
SELECT slot_name, active_pid, confirmed_flush_lsn::text, wal_status, pg_is_in_recovery()
FROM pg_replication_slots
WHERE slot_type = 'logical' AND database = current_database()
