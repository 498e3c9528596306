-- Moves a cell's checkpoint forwards, or updates its freshness at the same position. SQLSTATE PA001 if the checkpoint is
-- further: another process applied, and the caller's transaction rolls back.
-- A freshness time in the future comes from a clock that is ahead. A given one is replaced by now, and a stored one is
-- ignored (an older version stored it, or this server's clock was set back). Otherwise it would stay until correct clocks
-- reach it.
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
        CASE WHEN p_fresh_at_us > 0 THEN  -- least() ignores NULL
            least(timestamptz 'epoch' + p_fresh_at_us * interval '1 microsecond', clock_timestamp())
        END
    )
    ON CONFLICT (cell) DO UPDATE SET
        epoch = excluded.epoch,
        lsn = excluded.lsn,
        commit_ts = coalesce(excluded.commit_ts, kept.commit_ts),
        fresh_at = greatest(
            excluded.fresh_at, CASE WHEN kept.fresh_at <= clock_timestamp() THEN kept.fresh_at END
        )
    WHERE (kept.epoch, kept.lsn) <= (excluded.epoch, excluded.lsn);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the checkpoint of cell % is already past (%, %)', p_cell, p_epoch, p_lsn
            USING ERRCODE = 'PA001';
    END IF;
END
$$;
