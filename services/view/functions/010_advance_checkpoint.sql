-- Moves a cell's checkpoint forwards, or refreshes it where it stands. When it is already further, somebody else
-- applied: SQLSTATE PA001, with which nothing of the caller's transaction stays.
CREATE OR REPLACE FUNCTION advance_checkpoint(
    p_cell text,
    p_epoch bigint,
    p_lsn pg_lsn,
    p_commit_ts_us bigint,  -- microseconds since 1970; NULL: no transaction came with it
    p_fresh_at_us bigint    -- microseconds since 1970; 0: nothing is known
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO checkpoint AS kept (cell, epoch, lsn, commit_ts, fresh_at)
    VALUES (
        p_cell, p_epoch, p_lsn,
        timestamptz 'epoch' + p_commit_ts_us * interval '1 microsecond',
        timestamptz 'epoch' + nullif(p_fresh_at_us, 0) * interval '1 microsecond'
    )
    ON CONFLICT (cell) DO UPDATE SET
        epoch = excluded.epoch,
        lsn = excluded.lsn,
        commit_ts = coalesce(excluded.commit_ts, kept.commit_ts),
        fresh_at = greatest(excluded.fresh_at, kept.fresh_at)
    WHERE (kept.epoch, kept.lsn) <= (excluded.epoch, excluded.lsn);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the checkpoint of cell % is already past (%, %)', p_cell, p_epoch, p_lsn
            USING ERRCODE = 'PA001';
    END IF;
END
$$;
