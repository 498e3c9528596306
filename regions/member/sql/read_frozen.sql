-- Rule 4: whether a standby with an empty connection string still receives or replays WAL, and where its WAL ends.
-- The startup process has these wait events only when it has replayed all WAL that is on the disk.
SELECT
    pg_is_in_recovery() AS in_recovery,
    -- Not pg_stat_wal_receiver, which does not show a receiver that is still connecting.
    EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.backend_type = 'walreceiver') AS receiving,
    current_setting('primary_conninfo') AS primary_conninfo,
    pg_last_wal_receive_lsn() AS received,
    pg_last_wal_replay_lsn() AS replayed,
    pg_size_bytes(current_setting('wal_segment_size')) AS segment_bytes,
    -- Whether it has looked for more WAL since its receiver ended, and found none.
    coalesce((
        SELECT a.wait_event = 'RecoveryRetrieveRetryInterval'
        FROM pg_stat_activity AS a WHERE a.backend_type = 'startup'
    ), false) AS looked,
    coalesce((
        SELECT a.wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')
        FROM pg_stat_activity AS a WHERE a.backend_type = 'startup'
    ), false) AS exhausted
