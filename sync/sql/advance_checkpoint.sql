-- Moves the checkpoint forwards, or refreshes it where it stands. No row: it is already further.
-- $1 cell  $2 epoch  $3 lsn  $4 commit time or NULL  $5 time of freshness, both microseconds since 1970
INSERT INTO checkpoint AS kept (cell, epoch, lsn, commit_ts, fresh_at)
VALUES (
    $1, $2, $3,
    timestamptz 'epoch' + $4::bigint * interval '1 microsecond',
    timestamptz 'epoch' + nullif($5::bigint, 0) * interval '1 microsecond'
)
ON CONFLICT (cell) DO UPDATE SET
    epoch = excluded.epoch,
    lsn = excluded.lsn,
    commit_ts = coalesce(excluded.commit_ts, kept.commit_ts),
    fresh_at = greatest(excluded.fresh_at, kept.fresh_at)
WHERE (kept.epoch, kept.lsn) <= (excluded.epoch, excluded.lsn)
RETURNING true
