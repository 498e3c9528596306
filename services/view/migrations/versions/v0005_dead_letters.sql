ALTER TABLE dead_letters
    ADD COLUMN content_of jsonb,                        -- table and key of the row whose content it quotes; NULL: none
    ADD COLUMN erases boolean NOT NULL DEFAULT false,   -- the change erases that row
    ADD COLUMN erased_at timestamptz,                   -- when the content of the letter was erased
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,     -- retries that failed
    ADD COLUMN bytes bigint NOT NULL DEFAULT 0;         -- size of the change and of the reason

-- Replicators of the previous release stored details of errors, which quote the row.
UPDATE dead_letters SET
    reason = split_part(reason, E'\nDETAIL', 1),
    content_of = CASE
        WHEN change ->> 'table' = 'comments' AND change -> 'key' ? 'id'
            THEN jsonb_build_array('comments', change -> 'key' -> 'id')
        WHEN change ->> 'table' = 'votes' AND change -> 'key' ? 'comment_id'
            THEN jsonb_build_array('comments', change -> 'key' -> 'comment_id')
    END,
    erases = change ->> 'table' = 'comments' AND (
        change ->> 'op' = 'delete'
        OR change -> 'row' @> '{"state": "deleted", "body": null}'
    );
UPDATE dead_letters SET bytes = octet_length(change::text) + octet_length(reason);

-- A key has no bound, and a hash index takes values of every size.
CREATE INDEX dead_letters_by_content ON dead_letters USING hash (content_of);
