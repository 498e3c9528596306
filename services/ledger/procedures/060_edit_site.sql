-- Replaces the name or the origins of a site; NULL keeps what the site has. The new version carries the change to the
-- views. An edit that changes nothing is acknowledged as durably as the edit that it repeats, without a new version.
-- outcome: edited | stale_epoch | no_site
CREATE OR REPLACE PROCEDURE palaver.edit_site(
    p_epoch bigint,
    p_site uuid,
    p_name text,
    p_origins text[],
    p_trace text,
    INOUT outcome text DEFAULT NULL,
    INOUT site_name text DEFAULT NULL,
    INOUT site_origins text[] DEFAULT NULL,
    INOUT lsn pg_lsn DEFAULT NULL
)
LANGUAGE plpgsql AS $$
DECLARE
    v_old palaver.sites;
BEGIN
    IF NOT palaver.is_current_epoch(p_epoch) THEN
        outcome := 'stale_epoch';
        RETURN;
    END IF;
    SELECT * INTO v_old FROM palaver.sites AS s WHERE s.id = p_site FOR UPDATE;
    IF NOT FOUND THEN
        ROLLBACK;
        outcome := 'no_site';
        RETURN;
    END IF;
    site_name := coalesce(p_name, v_old.name);
    site_origins := coalesce(p_origins, v_old.origins);
    IF site_name = v_old.name AND site_origins = v_old.origins THEN
        PERFORM pg_logical_emit_message(true, 'replay', '');
    ELSE
        UPDATE palaver.sites AS s
        SET name = site_name, origins = site_origins, version = s.version + 1, epoch = p_epoch
        WHERE s.id = p_site;
    END IF;
    IF p_trace IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'trace', p_trace);
    END IF;
    COMMIT;
    outcome := 'edited';
    lsn := pg_current_wal_flush_lsn();
END
$$;
