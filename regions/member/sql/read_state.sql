-- Rule 4: after a restart, a standby's receive position can be NULL or less than its replay position.
SELECT
    pg_is_in_recovery() AS in_recovery,
    CASE
        WHEN pg_is_in_recovery() THEN GREATEST(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
        ELSE pg_current_wal_flush_lsn()
    END AS lsn,
    EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') AS receiving,
    current_setting('synchronous_standby_names') AS synchronous_standby_names
