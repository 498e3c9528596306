-- Brings the newest images of rows into the view, each only over an older version of itself, and returns per row
-- that moved what its thread's count and its parent's replies change by.
-- Arguments: JSON arrays of row images, one per id, values in text form; NULL where a table has none. "lsn" is
-- where the change stands; "unchanged" names the columns whose value was not sent.
CREATE OR REPLACE FUNCTION merge_rows(p_sites json, p_threads json, p_comments json)
RETURNS TABLE (moved_thread uuid, moved_parent uuid, approved integer, shown integer, moved_lsn bigint)
LANGUAGE plpgsql AS $$
BEGIN
    IF p_sites IS NOT NULL THEN
        MERGE INTO sites AS kept
        USING json_to_recordset(p_sites) AS r (
            id uuid, name text, origins text[], settings text, version integer, unchanged text[]
        ) ON kept.id = r.id
        WHEN MATCHED AND kept.version < r.version THEN UPDATE SET
            name = CASE WHEN 'name' = ANY (r.unchanged) THEN kept.name ELSE r.name END,
            origins = CASE WHEN 'origins' = ANY (r.unchanged) THEN kept.origins ELSE r.origins END,
            settings = CASE WHEN 'settings' = ANY (r.unchanged) THEN kept.settings ELSE r.settings::jsonb END,
            version = r.version
        WHEN NOT MATCHED THEN INSERT (id, name, origins, settings, version)
            VALUES (r.id, r.name, r.origins, r.settings::jsonb, r.version);
    END IF;

    IF p_threads IS NOT NULL THEN
        RETURN QUERY
        MERGE INTO threads AS kept
        USING json_to_recordset(p_threads) AS r (
            id uuid, site_id uuid, key text, title text, state text, version integer, lsn bigint,
            unchanged text[]
        ) ON kept.id = r.id
        WHEN MATCHED AND kept.version < r.version THEN UPDATE SET
            key = CASE WHEN 'key' = ANY (r.unchanged) THEN kept.key ELSE r.key END,
            title = CASE WHEN 'title' = ANY (r.unchanged) THEN kept.title ELSE r.title END,
            state = r.state,
            version = r.version
        WHEN NOT MATCHED THEN INSERT (id, site_id, key, title, state, version)
            VALUES (r.id, r.site_id, r.key, r.title, r.state, r.version)
        RETURNING new.id, NULL::uuid, 0, 0, r.lsn;
    END IF;

    IF p_comments IS NOT NULL THEN
        RETURN QUERY
        MERGE INTO comments AS kept
        USING json_to_recordset(p_comments) AS r (
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
            created_at, edited_at, deleted_at
        ) VALUES (
            r.id, r.site_id, r.thread_id, r.parent_id, r.depth, r.author_id, r.author_name, r.author_url, r.body,
            r.state, r.version, r.created_at, r.edited_at, r.deleted_at
        )
        RETURNING
            new.thread_id, new.parent_id,
            (new.state = 'approved')::integer
                - coalesce(old.state = 'approved', false)::integer,
            (new.state IN ('approved', 'deleted'))::integer
                - coalesce(old.state IN ('approved', 'deleted'), false)::integer,
            r.lsn;
    END IF;
END
$$;
