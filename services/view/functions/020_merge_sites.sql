-- Writes the newest images of sites, each only over an older version of itself, and deletes rows that the ledger has
-- deleted. A site moves no counter and no page.
-- Arguments of every merge_<table> function: a JSON array of row images, one for each key, with values in text form;
-- "lsn" is the position of the change; "unchanged" names the columns whose value was not sent. Then a JSON array of the
-- keys of deleted rows, and the LSN of the newest deletion. NULL if there are none.
CREATE OR REPLACE FUNCTION merge_sites(p_rows json, p_gone json, p_gone_lsn bigint) RETURNS SETOF moved
LANGUAGE plpgsql AS $$
BEGIN
    IF p_rows IS NOT NULL THEN
        MERGE INTO sites AS kept
        USING json_to_recordset(p_rows) AS r (
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
    IF p_gone IS NOT NULL THEN
        DELETE FROM sites AS s USING json_to_recordset(p_gone) AS g (id uuid) WHERE s.id = g.id;
    END IF;
END
$$;
