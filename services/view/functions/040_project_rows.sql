-- Writes and deletes rows, updates the counters that depend on them, and returns the pages that changed. p_tables names
-- the changed tables; the other arrays have the arguments of each table's merge function.
-- A page's version is the LSN of its newest change, so that every region gives the same page the same version. If LSNs
-- fail to grow (history was replaced after a failover), the version still grows.
CREATE OR REPLACE FUNCTION project_rows(
    p_tables text[],
    p_rows json[],
    p_gone json[],
    p_gone_lsn bigint,
    p_batch text  -- epoch and LSN of the first and of the last transaction, as an array
) RETURNS TABLE (site uuid, key text, version bigint)
LANGUAGE plpgsql AS $$
DECLARE
    v_all moved[] := '{}';
    v_moved moved[];
BEGIN
    PERFORM set_config('palaver.batch', p_batch, true);  -- for the triggers of the Merkle tree
    FOR i IN 1 .. cardinality(p_tables) LOOP
        EXECUTE format('SELECT array_agg(m) FROM %I($1, $2, $3) AS m', 'merge_' || p_tables[i])
        INTO v_moved USING p_rows[i], p_gone[i], p_gone_lsn;
        v_all := v_all || v_moved;
    END LOOP;
    -- Separate statements, because only those see the rows that were written just now.
    UPDATE comments AS c SET
        reply_count = c.reply_count + moves.replies,
        up = c.up + moves.up,
        down = c.down + moves.down
    FROM (
        SELECT m.comment, sum(m.replies) AS replies, sum(m.up) AS up, sum(m.down) AS down
        FROM unnest(v_all) AS m
        WHERE m.comment IS NOT NULL
        GROUP BY m.comment
        HAVING sum(m.replies) <> 0 OR sum(m.up) <> 0 OR sum(m.down) <> 0
    ) AS moves
    WHERE c.id = moves.comment;
    RETURN QUERY
    UPDATE threads AS t SET
        count = t.count + moves.comments,
        page_version = greatest(t.page_version + 1, moves.lsn)
    FROM (
        SELECT m.thread, sum(m.comments) AS comments, max(m.lsn) AS lsn
        FROM unnest(v_all) AS m
        GROUP BY m.thread
    ) AS moves
    WHERE t.id = moves.thread
    RETURNING t.site_id, t.key, t.page_version;
END
$$;
