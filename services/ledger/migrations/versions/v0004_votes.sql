-- One row for each user and comment. A withdrawn vote has the value 0: its row stays, because the view keeps the newest
-- version of a row. user_id is the site's own id of its user. The rows are deleted together with the content of the
-- comment (040_delete_comment.sql).
CREATE TABLE palaver.votes (
    comment_id uuid NOT NULL,
    user_id text NOT NULL,
    site_id uuid NOT NULL,
    thread_id uuid NOT NULL,
    value smallint NOT NULL CHECK (value BETWEEN -1 AND 1),
    version integer NOT NULL DEFAULT 1,
    epoch bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (comment_id, user_id)
);

-- Votes are counted in this index. A row with the totals of a comment would be locked during each voter's quorum wait.
CREATE INDEX votes_by_value ON palaver.votes (comment_id, value) WHERE value <> 0;

ALTER PUBLICATION palaver ADD TABLE palaver.votes;
INSERT INTO palaver.table_schemas (name, schema) VALUES ('votes', 1);
