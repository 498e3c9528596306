-- Writes the newest images of threads, and deletes rows (arguments as in merge_sites). A changed thread has a new page.
CREATE OR REPLACE FUNCTION merge_threads(p_rows json, p_gone json, p_gone_lsn bigint) RETURNS SETOF moved
LANGUAGE plpgsql AS $$
BEGIN
    IF p_rows IS NOT NULL THEN
        RETURN QUERY
        MERGE INTO threads AS kept
        USING json_to_recordset(p_rows) AS r (
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
        RETURNING new.id, NULL::uuid, 0, 0, r.lsn, 0, 0;
    END IF;
    IF p_gone IS NOT NULL THEN
        DELETE FROM threads AS t USING json_to_recordset(p_gone) AS g (id uuid) WHERE t.id = g.id;
    END IF;
END
$$;
