-- The first statement of a snapshot: the end of the WAL that the snapshot can have seen, and the ledger's time.
SELECT pg_current_wal_flush_lsn()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
