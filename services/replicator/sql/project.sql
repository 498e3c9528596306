-- Brings the newest images of rows into the view, each only over an older version of itself, and returns
-- what that moved: per thread the change of its count, per parent the change of its replies.
-- $1 sites  $2 threads  $3 comments: JSON arrays of row images, one per id, values in text form.
-- "lsn" is where the change stands; "unchanged" names the columns whose value was not sent.
WITH site_rows AS (
    SELECT r.id, r.name, r.origins, r.settings::jsonb AS settings, r.version, r.unchanged
    FROM json_to_recordset($1::json) AS r (
        id uuid, name text, origins text[], settings text, version integer, unchanged text[]
    )
),
thread_rows AS (
    SELECT r.*
    FROM json_to_recordset($2::json) AS r (
        id uuid, site_id uuid, key text, title text, state text, version integer, lsn bigint,
        unchanged text[]
    )
),
comment_rows AS (
    SELECT r.*
    FROM json_to_recordset($3::json) AS r (
        id uuid, site_id uuid, thread_id uuid, parent_id uuid, depth integer, author_id text,
        author_name text, author_url text, body text, state text, version integer,
        created_at timestamptz, edited_at timestamptz, deleted_at timestamptz, lsn bigint,
        unchanged text[]
    )
),
merged_sites AS (
    MERGE INTO sites AS kept USING site_rows AS r ON kept.id = r.id
    WHEN MATCHED AND kept.version < r.version THEN UPDATE SET
        name = CASE WHEN 'name' = ANY (r.unchanged) THEN kept.name ELSE r.name END,
        origins = CASE WHEN 'origins' = ANY (r.unchanged) THEN kept.origins ELSE r.origins END,
        settings = CASE WHEN 'settings' = ANY (r.unchanged) THEN kept.settings ELSE r.settings END,
        version = r.version
    WHEN NOT MATCHED THEN INSERT (id, name, origins, settings, version)
        VALUES (r.id, r.name, r.origins, r.settings, r.version)
),
merged_threads AS (
    MERGE INTO threads AS kept USING thread_rows AS r ON kept.id = r.id
    WHEN MATCHED AND kept.version < r.version THEN UPDATE SET
        key = CASE WHEN 'key' = ANY (r.unchanged) THEN kept.key ELSE r.key END,
        title = CASE WHEN 'title' = ANY (r.unchanged) THEN kept.title ELSE r.title END,
        state = r.state,
        version = r.version
    WHEN NOT MATCHED THEN INSERT (id, site_id, key, title, state, version)
        VALUES (r.id, r.site_id, r.key, r.title, r.state, r.version)
    RETURNING new.id AS thread_id, r.lsn
),
merged_comments AS (
    MERGE INTO comments AS kept USING comment_rows AS r ON kept.id = r.id
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
        new.thread_id, new.parent_id, r.lsn,
        (new.state = 'approved')::integer
            - coalesce(old.state = 'approved', false)::integer AS approved,
        (new.state IN ('approved', 'deleted'))::integer
            - coalesce(old.state IN ('approved', 'deleted'), false)::integer AS shown
)
SELECT moved.thread_id AS id, 'thread' AS kind, sum(moved.approved) AS delta, max(moved.lsn) AS lsn
FROM (
    SELECT thread_id, 0 AS approved, lsn FROM merged_threads
    UNION ALL
    SELECT thread_id, approved, lsn FROM merged_comments
) AS moved
GROUP BY moved.thread_id
UNION ALL
SELECT parent_id, 'parent', sum(shown), 0 FROM merged_comments
WHERE parent_id IS NOT NULL
GROUP BY parent_id
HAVING sum(shown) <> 0
