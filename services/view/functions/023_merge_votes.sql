-- Writes the newest images of votes, and deletes rows (arguments as in merge_sites). A vote moves the counts of its
-- comment, and the page of its thread.
CREATE OR REPLACE FUNCTION merge_votes(p_rows json, p_gone json, p_gone_lsn bigint) RETURNS SETOF moved
LANGUAGE plpgsql AS $$
BEGIN
    IF p_rows IS NOT NULL THEN
        RETURN QUERY
        MERGE INTO votes AS kept
        USING json_to_recordset(p_rows) AS r (
            comment_id uuid, user_id text, site_id uuid, thread_id uuid, value smallint, version integer, lsn bigint
        ) ON kept.comment_id = r.comment_id AND kept.user_id = r.user_id
        WHEN MATCHED AND kept.version < r.version THEN UPDATE SET
            value = r.value,
            version = r.version
        WHEN NOT MATCHED THEN INSERT (comment_id, user_id, site_id, thread_id, value, version)
            VALUES (r.comment_id, r.user_id, r.site_id, r.thread_id, r.value, r.version)
        RETURNING
            new.thread_id, new.comment_id, 0, 0, r.lsn,
            (new.value = 1)::integer - coalesce(old.value = 1, false)::integer,
            (new.value = -1)::integer - coalesce(old.value = -1, false)::integer;
    END IF;
    IF p_gone IS NOT NULL THEN
        RETURN QUERY
        DELETE FROM votes AS v USING json_to_recordset(p_gone) AS g (comment_id uuid, user_id text)
        WHERE v.comment_id = g.comment_id AND v.user_id = g.user_id
        RETURNING v.thread_id, v.comment_id, 0, 0, p_gone_lsn, -(v.value = 1)::integer, -(v.value = -1)::integer;
    END IF;
END
$$;
