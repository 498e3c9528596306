-- A site, and whether a key is one of its own. No row: unknown site.
SELECT
    s.name, s.origins,
    EXISTS (
        SELECT FROM palaver.site_keys AS k
        WHERE k.key_hash = $2 AND k.site_id = s.id AND k.revoked_at IS NULL
    ) AS is_its_key
FROM palaver.sites AS s
WHERE s.id = $1
