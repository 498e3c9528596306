-- What a written row changes beside itself: counters of its thread and of a comment, and the page of its thread.
CREATE TYPE moved AS (
    thread uuid,      -- whose page is new
    comment uuid,     -- whose counters move; NULL: none
    comments integer, -- by this the thread's count moves
    replies integer,  -- by this the comment's reply_count moves
    lsn bigint        -- position of the change
);

DROP FUNCTION IF EXISTS project_and_advance(
    json, json, json, uuid[], uuid[], uuid[], bigint, text, bigint, pg_lsn, bigint, bigint
);
DROP FUNCTION IF EXISTS project_rows(json, json, json, uuid[], uuid[], uuid[], bigint);
DROP FUNCTION IF EXISTS erase_rows(uuid[], uuid[], uuid[], bigint);
DROP FUNCTION IF EXISTS merge_rows(json, json, json);
