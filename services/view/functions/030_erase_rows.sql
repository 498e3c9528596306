-- Removes rows that the ledger has removed, and returns what that moved, in the form of `merge_rows`.
CREATE OR REPLACE FUNCTION erase_rows(
    p_sites uuid[],
    p_threads uuid[],
    p_comments uuid[],
    p_lsn bigint  -- where the newest of these changes stands
)
RETURNS TABLE (moved_thread uuid, moved_parent uuid, approved integer, shown integer, moved_lsn bigint)
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM sites AS s WHERE s.id = ANY (p_sites);
    DELETE FROM threads AS t WHERE t.id = ANY (p_threads);
    RETURN QUERY
    DELETE FROM comments AS c WHERE c.id = ANY (p_comments)
    RETURNING
        c.thread_id, c.parent_id,
        -(c.state = 'approved')::integer,
        -(c.state IN ('approved', 'deleted'))::integer,
        p_lsn;
END
$$;
