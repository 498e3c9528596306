-- Writes the newest images of comments, and deletes rows (arguments as in merge_sites). A comment moves the count and
-- the page of its thread, and the reply count of its parent. A new comment counts votes that are there before it. A
-- deleted comment deletes its votes, so that they are erased also in a view that gets the deletion by a snapshot.
CREATE OR REPLACE FUNCTION merge_comments(p_rows json, p_gone json, p_gone_lsn bigint) RETURNS SETOF moved
LANGUAGE plpgsql AS $$
BEGIN
    IF p_rows IS NOT NULL THEN
        RETURN QUERY
        MERGE INTO comments AS kept
        USING json_to_recordset(p_rows) AS r (
            id uuid, site_id uuid, thread_id uuid, parent_id uuid, depth integer, author_id text,
            author_name text, author_url text, body text, state text, version integer,
            created_at timestamptz, edited_at timestamptz, deleted_at timestamptz, lsn bigint,
            unchanged text[]
        ) ON kept.id = r.id
        WHEN MATCHED AND kept.version < r.version THEN UPDATE SET
            author_id = CASE WHEN 'author_id' = ANY (r.unchanged) THEN kept.author_id ELSE r.author_id END,
            author_name = CASE WHEN 'author_name' = ANY (r.unchanged) THEN kept.author_name ELSE r.author_name END,
            author_url = CASE WHEN 'author_url' = ANY (r.unchanged) THEN kept.author_url ELSE r.author_url END,
            body = CASE WHEN 'body' = ANY (r.unchanged) THEN kept.body ELSE r.body END,
            state = r.state,
            version = r.version,
            edited_at = r.edited_at,
            deleted_at = r.deleted_at
        WHEN NOT MATCHED THEN INSERT (
            id, site_id, thread_id, parent_id, depth, author_id, author_name, author_url, body, state, version,
            created_at, edited_at, deleted_at, up, down
        ) VALUES (
            r.id, r.site_id, r.thread_id, r.parent_id, r.depth, r.author_id, r.author_name, r.author_url, r.body,
            r.state, r.version, r.created_at, r.edited_at, r.deleted_at,
            (SELECT count(*) FROM votes AS v WHERE v.comment_id = r.id AND v.value = 1),
            (SELECT count(*) FROM votes AS v WHERE v.comment_id = r.id AND v.value = -1)
        )
        RETURNING
            new.thread_id, new.parent_id,
            (new.state = 'approved')::integer
                - coalesce(old.state = 'approved', false)::integer,
            (new.state IN ('approved', 'deleted'))::integer
                - coalesce(old.state IN ('approved', 'deleted'), false)::integer,
            r.lsn, 0, 0;
        -- Most batches delete no comment. Without the word they have no such row, so the images are not parsed again.
        IF p_rows::text LIKE '%"deleted"%' THEN
            RETURN QUERY
            DELETE FROM votes AS v USING json_to_recordset(p_rows) AS r (id uuid, state text, lsn bigint), comments AS c
            WHERE r.state = 'deleted' AND v.comment_id = r.id AND c.id = r.id AND c.state = 'deleted'
            RETURNING v.thread_id, v.comment_id, 0, 0, r.lsn, -(v.value = 1)::integer, -(v.value = -1)::integer;
        END IF;
    END IF;
    IF p_gone IS NOT NULL THEN
        RETURN QUERY
        DELETE FROM comments AS c USING json_to_recordset(p_gone) AS g (id uuid) WHERE c.id = g.id
        RETURNING
            c.thread_id, c.parent_id,
            -(c.state = 'approved')::integer,
            -(c.state IN ('approved', 'deleted'))::integer,
            p_gone_lsn, 0, 0;
    END IF;
END
$$;
