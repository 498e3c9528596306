-- Sets the vote of a user on a comment. If the vote has this value already, no row changes, and the answer is as
-- durable as the first one. The counts include this vote and every vote that was acknowledged before this call. They
-- may lack votes that commit at the same time. They are counted before the commit, because the write API takes an error
-- of a lock or of the schema as proof that nothing was written.
-- outcome: voted | replayed | stale_epoch | no_site | unauthorized | not_shown | read_only
CREATE OR REPLACE PROCEDURE palaver.set_vote(
    p_epoch bigint,
    p_site uuid,
    p_key_hash bytea,
    p_comment uuid,
    p_user text,
    p_value smallint,
    p_trace text,
    INOUT outcome text DEFAULT NULL,
    INOUT up bigint DEFAULT NULL,
    INOUT down bigint DEFAULT NULL,
    INOUT lsn pg_lsn DEFAULT NULL
)
LANGUAGE plpgsql AS $$
DECLARE
    v_thread_id uuid;
    v_thread_state text;
    v_outcome text := 'voted';
BEGIN
    outcome := palaver.refusal(p_epoch, p_site, p_key_hash);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(palaver.votes_lock(p_comment));
    -- A statement of its own, because it has to see a deletion that the lock waited for.
    SELECT c.thread_id, t.state INTO v_thread_id, v_thread_state
    FROM palaver.comments AS c
    JOIN palaver.threads AS t ON t.id = c.thread_id
    WHERE c.id = p_comment AND c.site_id = p_site AND c.state = 'approved';
    IF NOT FOUND THEN
        outcome := 'not_shown';
    ELSIF v_thread_state = 'read_only' THEN
        outcome := 'read_only';
    END IF;
    IF outcome IS NOT NULL THEN
        ROLLBACK;
        RETURN;
    END IF;
    -- A second request for the same user waits here for the commit of the first one. The row is locked even if its
    -- value stays, which also makes the commit wait for its quorum; the message does not rely on this detail.
    INSERT INTO palaver.votes AS v (comment_id, user_id, site_id, thread_id, value, epoch)
    VALUES (p_comment, p_user, p_site, v_thread_id, p_value, p_epoch)
    ON CONFLICT (comment_id, user_id) DO UPDATE
    SET value = excluded.value, version = v.version + 1, epoch = excluded.epoch, changed_at = now()
    WHERE v.value <> excluded.value;
    IF NOT FOUND THEN
        v_outcome := 'replayed';
        PERFORM pg_logical_emit_message(true, 'replay', '');
    END IF;
    SELECT count(*) FILTER (WHERE v.value = 1), count(*) FILTER (WHERE v.value = -1) INTO up, down
    FROM palaver.votes AS v
    WHERE v.comment_id = p_comment AND v.value <> 0;
    IF p_trace IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'trace', p_trace);
    END IF;
    COMMIT;
    outcome := v_outcome;
    lsn := pg_current_wal_flush_lsn();
END
$$;
