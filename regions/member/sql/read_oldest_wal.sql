-- Where the oldest WAL begins that is still here. Names are timeline, then position; those made for later are greater.
SELECT min(
    ('x' || substr(name, 9, 8))::bit(32)::bigint * (1::bigint << 32)
    + ('x' || substr(name, 17, 8))::bit(32)::bigint * pg_size_bytes(current_setting('wal_segment_size'))
) AS lsn
FROM pg_ls_waldir()
WHERE name ~ '^[0-9A-F]{24}$'
