-- The epoch of the ledger's first fence row, and an LSN after that row. A stream that starts at the beginning of the
-- ledger starts with that row.
SELECT min(epoch), pg_current_wal_flush_lsn()::text FROM palaver.fence
