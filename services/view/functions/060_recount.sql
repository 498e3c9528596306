-- Computes derived values again from the rows: the replies and votes of comments, the comments of threads. Returns the
-- pages that have to be rendered again. p_lsn is the position of the repair.
CREATE OR REPLACE FUNCTION recount(p_threads uuid[], p_comments uuid[], p_lsn bigint)
RETURNS TABLE (site uuid, key text, version bigint)
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE comments AS c SET reply_count = n.replies, up = n.up, down = n.down
    FROM (
        SELECT
            p.id,
            (
                SELECT count(*) FROM comments AS r
                WHERE r.thread_id = p.thread_id AND r.parent_id = p.id AND r.state IN ('approved', 'deleted')
            ) AS replies,
            (SELECT count(*) FROM votes AS v WHERE v.comment_id = p.id AND v.value = 1) AS up,
            (SELECT count(*) FROM votes AS v WHERE v.comment_id = p.id AND v.value = -1) AS down
        FROM comments AS p
        WHERE p.id = ANY (p_comments)
    ) AS n
    WHERE c.id = n.id AND (c.reply_count, c.up, c.down) IS DISTINCT FROM (n.replies, n.up, n.down);
    RETURN QUERY
    UPDATE threads AS t SET
        count = (SELECT count(*) FROM comments AS c WHERE c.thread_id = t.id AND c.state = 'approved'),
        page_version = greatest(t.page_version + 1, p_lsn)
    WHERE t.id = ANY (p_threads)
    RETURNING t.site_id, t.key, t.page_version;
END
$$;
