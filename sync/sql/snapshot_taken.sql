-- The first statement of a snapshot: how far the WAL reaches that it can have seen, and the ledger's time.
SELECT pg_current_wal_flush_lsn()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
