-- Whether WAL streams in, and the newest end of WAL that this member has.
SELECT
    EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') AS streaming,
    greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) AS lsn
