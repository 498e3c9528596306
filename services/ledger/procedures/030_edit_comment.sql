-- Replaces a comment's body when its version is the expected one, and keeps the old body as a revision.
-- An edit that was already applied is acknowledged as durably as the first one (RFC 9110, section 13.1.1), because a
-- client that lost the answer sends it again.
-- outcome: edited | stale_epoch | no_site | unauthorized | no_comment | version_mismatch
CREATE OR REPLACE PROCEDURE palaver.edit_comment(
    p_epoch bigint,
    p_site uuid,
    p_key_hash bytea,
    p_comment uuid,
    p_expected_version integer,
    p_body text,
    p_trace text,
    INOUT outcome text DEFAULT NULL,
    INOUT lsn pg_lsn DEFAULT NULL,
    INOUT comment jsonb DEFAULT NULL
)
LANGUAGE plpgsql AS $$
DECLARE
    v_old palaver.comments;
    v_new palaver.comments;
    v_key text;
    v_repeated boolean := false;
BEGIN
    outcome := palaver.refusal(p_epoch, p_site, p_key_hash);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT * INTO v_old FROM palaver.comments AS c WHERE c.id = p_comment AND c.site_id = p_site FOR UPDATE;
    IF NOT FOUND OR v_old.state = 'deleted' THEN
        outcome := 'no_comment';
    ELSIF v_old.version = p_expected_version + 1 AND v_old.body = p_body THEN
        v_repeated := true;
    ELSIF p_expected_version IS NOT NULL AND v_old.version <> p_expected_version THEN
        outcome := 'version_mismatch';
    END IF;
    IF outcome IS NOT NULL THEN
        ROLLBACK;
        RETURN;
    END IF;
    IF v_repeated THEN
        v_new := v_old;
        PERFORM pg_logical_emit_message(true, 'replay', '');
    ELSE
        INSERT INTO palaver.comment_revisions (comment_id, version, body)
        VALUES (v_old.id, v_old.version, v_old.body);
        UPDATE palaver.comments AS c
        SET body = p_body, version = c.version + 1, epoch = p_epoch, edited_at = now()
        WHERE c.id = p_comment
        RETURNING * INTO v_new;
    END IF;
    SELECT t.key INTO v_key FROM palaver.threads AS t WHERE t.id = v_new.thread_id;
    IF p_trace IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'trace', p_trace);
    END IF;
    COMMIT;
    outcome := 'edited';
    lsn := pg_current_wal_flush_lsn();
    comment := to_jsonb(v_new) || jsonb_build_object('thread_key', v_key);
END
$$;
