-- The reason for which a caller with a site's API key may not write; NULL if it may.
CREATE OR REPLACE FUNCTION palaver.refusal(p_epoch bigint, p_site uuid, p_key_hash bytea) RETURNS text
LANGUAGE sql STABLE
RETURN CASE
    WHEN NOT palaver.is_current_epoch(p_epoch) THEN 'stale_epoch'
    WHEN NOT EXISTS (SELECT FROM palaver.sites AS s WHERE s.id = p_site) THEN 'no_site'
    WHEN NOT EXISTS (
        SELECT FROM palaver.site_keys AS k
        WHERE k.key_hash = p_key_hash AND k.site_id = p_site AND k.revoked_at IS NULL
    ) THEN 'unauthorized'
END;
