-- Rule 4: what a standby that was told to receive from nobody still does, and where its WAL ends.
-- The startup process waits like this only when it has replayed all WAL that is on the disk.
SELECT
    pg_is_in_recovery() AS in_recovery,
    -- Not pg_stat_wal_receiver: a receiver that still connects is not in it.
    EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.backend_type = 'walreceiver') AS receiving,
    current_setting('primary_conninfo') AS primary_conninfo,
    pg_last_wal_receive_lsn() AS received,
    pg_last_wal_replay_lsn() AS replayed,
    pg_size_bytes(current_setting('wal_segment_size')) AS segment_bytes,
    -- It has looked for more since its receiver ended, and found none.
    coalesce((
        SELECT a.wait_event = 'RecoveryRetrieveRetryInterval'
        FROM pg_stat_activity AS a WHERE a.backend_type = 'startup'
    ), false) AS looked,
    coalesce((
        SELECT a.wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')
        FROM pg_stat_activity AS a WHERE a.backend_type = 'startup'
    ), false) AS exhausted
