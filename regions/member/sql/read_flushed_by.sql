-- The LSN up to which a standby has flushed; NULL if it is not connected.
SELECT (SELECT max(r.flush_lsn) FROM pg_stat_replication AS r WHERE r.application_name = $1::text) AS lsn
