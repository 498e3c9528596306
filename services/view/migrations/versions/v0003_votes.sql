CREATE TABLE votes (
    comment_id uuid NOT NULL,
    user_id text NOT NULL,
    site_id uuid NOT NULL,
    thread_id uuid NOT NULL,
    value smallint NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (comment_id, user_id)
);

-- The score is computed when it is read, so it cannot differ from the counts. Read APIs of the previous release read it.
ALTER TABLE comments
    ADD COLUMN up integer NOT NULL DEFAULT 0,
    ADD COLUMN down integer NOT NULL DEFAULT 0,
    DROP COLUMN score;
ALTER TABLE comments ADD COLUMN score integer GENERATED ALWAYS AS (up - down) VIRTUAL;

ALTER TYPE moved ADD ATTRIBUTE up integer, ADD ATTRIBUTE down integer;  -- by this the comment's counts of votes move
