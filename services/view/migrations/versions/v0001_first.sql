-- The read model of one region. Everything here can be rebuilt from the ledger; nothing references anything,
-- because changes of different tables arrive in the order of commits and repair may touch any row.
CREATE TABLE sites (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    origins text[] NOT NULL,
    settings jsonb NOT NULL DEFAULT '{}',
    version integer NOT NULL
);

-- Counters move with every comment: the free space keeps those updates on their page and out of the indexes.
CREATE TABLE threads (
    id uuid PRIMARY KEY,
    site_id uuid NOT NULL,
    key text NOT NULL,
    title text,
    state text NOT NULL,
    version integer NOT NULL,
    count integer NOT NULL DEFAULT 0,
    page_version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

-- A key of 2,000 characters can take 8,000 bytes and an index entry at most 2,704: the digest is indexed. The
-- encoding of a database never changes, which is what makes this immutable and convert_to in general not.
CREATE FUNCTION thread_key_digest(key text) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN sha256(convert_to(key, 'UTF8'));

CREATE UNIQUE INDEX threads_by_key ON threads (site_id, thread_key_digest(key));

CREATE TABLE comments (
    id uuid PRIMARY KEY,
    site_id uuid NOT NULL,
    thread_id uuid NOT NULL,
    parent_id uuid,
    depth integer NOT NULL,
    author_id text,
    author_name text,
    author_url text,
    body text,
    state text NOT NULL,
    version integer NOT NULL,
    score integer NOT NULL DEFAULT 0,
    reply_count integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    edited_at timestamptz,
    deleted_at timestamptz
) WITH (fillfactor = 85);

-- One index serves roots (parent_id IS NULL) and replies, both ways round.
CREATE INDEX comments_by_parent ON comments (thread_id, parent_id, created_at, id);

-- Where apply stands, written in the transaction that applied it. fresh_at: the view had everything until then.
CREATE TABLE checkpoint (
    cell text PRIMARY KEY,
    epoch bigint NOT NULL,
    lsn pg_lsn NOT NULL,
    commit_ts timestamptz,
    fresh_at timestamptz
) WITH (fillfactor = 10);

CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cell text NOT NULL,
    epoch bigint NOT NULL,
    lsn pg_lsn NOT NULL,
    change jsonb NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
