-- Creates a site with its first API key. The caller generates the id, because the key is derived from it; a replay
-- returns the first id, from which the caller derives the same secrets again.
-- outcome: created | replayed | key_reused | stale_epoch
CREATE OR REPLACE PROCEDURE palaver.create_site(
    p_epoch bigint,
    p_site uuid,
    p_name text,
    p_origins text[],
    p_key_hash bytea,
    p_idempotency_key text,
    p_fingerprint bytea,
    p_trace text,
    INOUT outcome text DEFAULT NULL,
    INOUT site_id uuid DEFAULT NULL,
    INOUT lsn pg_lsn DEFAULT NULL
)
LANGUAGE plpgsql AS $$
DECLARE
    c_no_site CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    v_kept palaver.idempotency_keys;
BEGIN
    IF NOT palaver.is_current_epoch(p_epoch) THEN
        outcome := 'stale_epoch';
        RETURN;
    END IF;
    IF p_idempotency_key IS NOT NULL THEN
        INSERT INTO palaver.idempotency_keys (site_id, key, fingerprint, resource_id)
        VALUES (c_no_site, p_idempotency_key, p_fingerprint, p_site)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            SELECT * INTO v_kept FROM palaver.idempotency_keys AS k
            WHERE k.site_id = c_no_site AND k.key = p_idempotency_key;
            IF v_kept.fingerprint IS DISTINCT FROM p_fingerprint THEN
                ROLLBACK;
                outcome := 'key_reused';
                RETURN;
            END IF;
            PERFORM pg_logical_emit_message(true, 'replay', '');
            COMMIT;
            outcome := 'replayed';
            site_id := v_kept.resource_id;
            lsn := pg_current_wal_flush_lsn();
            RETURN;
        END IF;
    END IF;
    INSERT INTO palaver.sites (id, name, origins, epoch) VALUES (p_site, p_name, p_origins, p_epoch);
    INSERT INTO palaver.site_keys (key_hash, site_id, generation) VALUES (p_key_hash, p_site, 1);
    IF p_trace IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'trace', p_trace);
    END IF;
    COMMIT;
    outcome := 'created';
    site_id := p_site;
    lsn := pg_current_wal_flush_lsn();
END
$$;
