-- How far a standby has flushed; NULL while it is not connected.
SELECT (SELECT max(r.flush_lsn) FROM pg_stat_replication AS r WHERE r.application_name = $1::text) AS lsn
