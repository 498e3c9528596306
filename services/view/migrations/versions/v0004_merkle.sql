-- The Merkle tree of the view: its leaves, and the changes of rows that are not in the leaves yet. Triggers write the
-- changes in the transaction that changes the rows. A replicator installs them, because they contain its secret.
CREATE TABLE merkle_leaves (
    leaf integer PRIMARY KEY,
    count integer NOT NULL,
    h1 bigint NOT NULL,
    h2 bigint NOT NULL
);

CREATE TABLE merkle_changes (
    id bigint GENERATED ALWAYS AS IDENTITY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    key_hash bigint NOT NULL,
    count integer NOT NULL,
    h1 bigint NOT NULL,
    h2 bigint NOT NULL,
    batch bigint[]  -- epoch and LSN of the first and of the last transaction; NULL: a change by hand
);
CREATE INDEX merkle_changes_by_xid ON merkle_changes (xid);

CREATE TABLE merkle_state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    scheme bigint NOT NULL,
    depth integer NOT NULL,
    complete boolean NOT NULL  -- the leaves have been computed
);

-- The functions get the positions of their batch, which the changes of the tree have.
DROP FUNCTION IF EXISTS project_and_advance(
    text[], json[], json[], bigint, text, bigint, pg_lsn, bigint, bigint
);
DROP FUNCTION IF EXISTS project_rows(text[], json[], json[], bigint);
