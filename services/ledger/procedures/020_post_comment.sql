-- Posts one comment: epoch, idempotency, thread, parent and insert in one round trip.
--
-- The procedure commits and then reads the flushed LSN, so the returned position is at or after the end of that commit.
-- A refusal rolls back, which also frees the Idempotency-Key.
-- outcome: created | replayed | key_reused | stale_epoch | no_site | no_parent | too_deep | thread_closed
CREATE OR REPLACE PROCEDURE palaver.post_comment(
    p_epoch bigint,
    p_site uuid,
    p_thread_key text,
    p_title text,
    p_parent uuid,
    p_body text,
    p_author_name text,
    p_author_email text,
    p_author_url text,
    p_idempotency_key text,
    p_fingerprint bytea,
    p_depth_max integer,
    p_trace text,
    INOUT outcome text DEFAULT NULL,
    INOUT comment_id uuid DEFAULT NULL,
    INOUT comment_thread_id uuid DEFAULT NULL,
    INOUT comment_created_at timestamptz DEFAULT NULL,
    INOUT lsn pg_lsn DEFAULT NULL
)
LANGUAGE plpgsql AS $$
DECLARE
    v_kept palaver.idempotency_keys;
    v_thread_id uuid;
    v_thread_state text;
    v_parent_thread_id uuid;
    v_depth integer := 0;
BEGIN
    IF NOT palaver.is_current_epoch(p_epoch) THEN
        outcome := 'stale_epoch';
        RETURN;
    END IF;
    PERFORM FROM palaver.sites AS s WHERE s.id = p_site;
    IF NOT FOUND THEN
        outcome := 'no_site';
        RETURN;
    END IF;
    comment_id := uuidv7();

    IF p_idempotency_key IS NOT NULL THEN
        -- A second caller with the same key waits here for the first one's commit.
        INSERT INTO palaver.idempotency_keys (site_id, key, fingerprint, resource_id)
        VALUES (p_site, p_idempotency_key, p_fingerprint, comment_id)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            SELECT * INTO v_kept FROM palaver.idempotency_keys AS k
            WHERE k.site_id = p_site AND k.key = p_idempotency_key;
            IF v_kept.fingerprint IS DISTINCT FROM p_fingerprint THEN
                ROLLBACK;
                comment_id := NULL;
                outcome := 'key_reused';
                RETURN;
            END IF;
            SELECT c.id, c.thread_id, c.created_at INTO comment_id, comment_thread_id, comment_created_at
            FROM palaver.comments AS c WHERE c.id = v_kept.resource_id;
            -- The first commit may be visible here and not yet on the quorum: this commit waits for both.
            PERFORM pg_logical_emit_message(true, 'replay', '');
            COMMIT;
            outcome := 'replayed';
            lsn := pg_current_wal_flush_lsn();
            RETURN;
        END IF;
    END IF;

    SELECT t.id, t.state INTO v_thread_id, v_thread_state FROM palaver.threads AS t
    WHERE t.site_id = p_site
      AND palaver.thread_key_digest(t.key) = palaver.thread_key_digest(p_thread_key);

    IF p_parent IS NOT NULL THEN
        SELECT c.thread_id, c.depth + 1 INTO v_parent_thread_id, v_depth FROM palaver.comments AS c
        WHERE c.id = p_parent AND c.site_id = p_site AND c.state <> 'deleted';
        IF NOT FOUND OR v_parent_thread_id IS DISTINCT FROM v_thread_id THEN
            outcome := 'no_parent';
        ELSIF v_depth > p_depth_max THEN
            outcome := 'too_deep';
        END IF;
    END IF;
    IF outcome IS NULL AND v_thread_state IN ('closed', 'read_only') THEN
        outcome := 'thread_closed';
    END IF;
    IF outcome IS NOT NULL THEN
        ROLLBACK;
        comment_id := NULL;
        RETURN;
    END IF;

    IF v_thread_id IS NULL THEN
        INSERT INTO palaver.threads (site_id, key, title, epoch)
        VALUES (p_site, p_thread_key, p_title, p_epoch)
        ON CONFLICT DO NOTHING RETURNING id INTO v_thread_id;
        IF v_thread_id IS NULL THEN
            SELECT t.id INTO STRICT v_thread_id FROM palaver.threads AS t
            WHERE t.site_id = p_site
              AND palaver.thread_key_digest(t.key) = palaver.thread_key_digest(p_thread_key);
        END IF;
    END IF;

    INSERT INTO palaver.comments (
        id, site_id, thread_id, parent_id, depth, author_name, author_url, body, epoch
    )
    VALUES (comment_id, p_site, v_thread_id, p_parent, v_depth, p_author_name, p_author_url, p_body, p_epoch)
    RETURNING created_at INTO comment_created_at;
    IF p_author_email IS NOT NULL THEN
        INSERT INTO palaver.comment_private (comment_id, email) VALUES (post_comment.comment_id, p_author_email);
    END IF;
    IF p_trace IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'trace', p_trace);
    END IF;
    COMMIT;
    comment_thread_id := v_thread_id;
    outcome := 'created';
    lsn := pg_current_wal_flush_lsn();
END
$$;
