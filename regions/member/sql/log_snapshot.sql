-- PostgreSQL synchronises a slot to a standby only after the slot has advanced past the position at which the standby
-- began, and slots advance only at these records. PostgreSQL itself writes one every 15 s; if the leader were lost
-- within that time, the change streams could not continue.
SELECT pg_log_standby_snapshot()
