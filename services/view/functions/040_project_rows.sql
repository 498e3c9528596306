-- Brings rows into the view and removes others, moves the counters by what that moved, and returns the pages that
-- are new by it. The arguments are those of `merge_rows` and `erase_rows`; without p_gone_lsn nothing is removed.
-- A page's version is the LSN of its newest change, so that every region gives the same page the same version;
-- where LSNs fail to grow (history was replaced after a failover) it still grows.
CREATE OR REPLACE FUNCTION project_rows(
    p_sites json,
    p_threads json,
    p_comments json,
    p_gone_sites uuid[],
    p_gone_threads uuid[],
    p_gone_comments uuid[],
    p_gone_lsn bigint
) RETURNS TABLE (site uuid, key text, version bigint)
LANGUAGE plpgsql AS $$
DECLARE
    v_threads uuid[];
    v_parents uuid[];
    v_approved integer[];
    v_shown integer[];
    v_lsns bigint[];
BEGIN
    SELECT
        array_agg(m.moved_thread), array_agg(m.moved_parent), array_agg(m.approved), array_agg(m.shown),
        array_agg(m.moved_lsn)
    INTO v_threads, v_parents, v_approved, v_shown, v_lsns
    FROM (
        SELECT * FROM merge_rows(p_sites, p_threads, p_comments)
        UNION ALL
        SELECT * FROM erase_rows(p_gone_sites, p_gone_threads, p_gone_comments, p_gone_lsn)
        WHERE p_gone_lsn IS NOT NULL
    ) AS m;
    -- Statements of their own, because only those see the rows that came just now.
    UPDATE comments AS c SET reply_count = c.reply_count + moved.delta
    FROM (
        SELECT u.parent, sum(u.shown) AS delta
        FROM unnest(v_parents, v_shown) AS u (parent, shown)
        WHERE u.parent IS NOT NULL
        GROUP BY u.parent
        HAVING sum(u.shown) <> 0
    ) AS moved
    WHERE c.id = moved.parent;
    RETURN QUERY
    UPDATE threads AS t SET
        count = t.count + moved.delta,
        page_version = greatest(t.page_version + 1, moved.lsn)
    FROM (
        SELECT u.thread, sum(u.approved) AS delta, max(u.lsn) AS lsn
        FROM unnest(v_threads, v_approved, v_lsns) AS u (thread, approved, lsn)
        GROUP BY u.thread
    ) AS moved
    WHERE t.id = moved.thread
    RETURNING t.site_id, t.key, t.page_version;
END
$$;
