-- One batch of changes and the checkpoint that covers it, in one round trip: `advance_checkpoint`, then
-- `project_rows`. A statement is a transaction, so both are there or neither is.
CREATE OR REPLACE FUNCTION project_and_advance(
    p_tables text[],
    p_rows json[],
    p_gone json[],
    p_gone_lsn bigint,
    p_batch text,
    p_cell text,
    p_epoch bigint,
    p_lsn pg_lsn,
    p_commit_ts_us bigint,
    p_fresh_at_us bigint
) RETURNS TABLE (site uuid, key text, version bigint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM advance_checkpoint(p_cell, p_epoch, p_lsn, p_commit_ts_us, p_fresh_at_us);
    RETURN QUERY SELECT * FROM project_rows(p_tables, p_rows, p_gone, p_gone_lsn, p_batch);
END
$$;
