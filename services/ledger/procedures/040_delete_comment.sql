-- Turns a comment into a tombstone: it stays in the tree; its text, author, old bodies and votes are deleted.
-- The deletion of a tombstone is acknowledged as durably as the first one.
-- outcome: deleted | stale_epoch | no_site | unauthorized | no_comment | version_mismatch
CREATE OR REPLACE PROCEDURE palaver.delete_comment(
    p_epoch bigint,
    p_site uuid,
    p_key_hash bytea,
    p_comment uuid,
    p_expected_version integer,
    p_trace text,
    INOUT outcome text DEFAULT NULL,
    INOUT lsn pg_lsn DEFAULT NULL
)
LANGUAGE plpgsql AS $$
DECLARE
    v_old palaver.comments;
BEGIN
    outcome := palaver.refusal(p_epoch, p_site, p_key_hash);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT * INTO v_old FROM palaver.comments AS c WHERE c.id = p_comment AND c.site_id = p_site FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'no_comment';
    ELSIF v_old.state <> 'deleted' AND p_expected_version IS NOT NULL AND v_old.version <> p_expected_version THEN
        outcome := 'version_mismatch';
    END IF;
    IF outcome IS NOT NULL THEN
        ROLLBACK;
        RETURN;
    END IF;
    IF v_old.state = 'deleted' THEN
        PERFORM pg_logical_emit_message(true, 'replay', '');
    ELSE
        PERFORM pg_advisory_xact_lock(palaver.votes_lock(p_comment));
        UPDATE palaver.comments AS c
        SET state = 'deleted', body = NULL, author_id = NULL, author_name = NULL, author_url = NULL,
            version = c.version + 1, epoch = p_epoch, deleted_at = now()
        WHERE c.id = p_comment;
        DELETE FROM palaver.comment_private AS p WHERE p.comment_id = p_comment;
        DELETE FROM palaver.comment_revisions AS r WHERE r.comment_id = p_comment;
        DELETE FROM palaver.votes AS v WHERE v.comment_id = p_comment;
    END IF;
    IF p_trace IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'trace', p_trace);
    END IF;
    COMMIT;
    outcome := 'deleted';
    lsn := pg_current_wal_flush_lsn();
END
$$;
