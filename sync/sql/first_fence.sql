-- The epoch of the ledger's first fence row, and a point of the WAL that lies behind it: a stream that
-- begins at the beginning begins with that row.
SELECT min(epoch), pg_current_wal_flush_lsn()::text FROM palaver.fence
