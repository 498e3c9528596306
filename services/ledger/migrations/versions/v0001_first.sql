CREATE SCHEMA palaver;

-- One row per epoch, written by its leader as the first transaction. The newest row says who may write.
CREATE TABLE palaver.fence (
    epoch bigint PRIMARY KEY CHECK (epoch > 0),
    fence_id uuid NOT NULL,
    leader text NOT NULL,
    established_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE palaver.sites (
    id uuid PRIMARY KEY DEFAULT uuidv7(),
    name text NOT NULL,
    origins text[] NOT NULL,
    settings jsonb NOT NULL DEFAULT '{}',
    version integer NOT NULL DEFAULT 1,
    epoch bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Only the SHA-256 of a key is kept; the key itself is derived again from the deployment's secret.
CREATE TABLE palaver.site_keys (
    key_hash bytea PRIMARY KEY CHECK (octet_length(key_hash) = 32),
    site_id uuid NOT NULL,
    generation integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

CREATE TABLE palaver.threads (
    id uuid PRIMARY KEY DEFAULT uuidv7(),
    site_id uuid NOT NULL,
    key text NOT NULL,
    title text,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed', 'read_only')),
    version integer NOT NULL DEFAULT 1,
    epoch bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A key of 2,000 characters can take 8,000 bytes and an index entry at most 2,704: the digest is indexed. The
-- encoding of a database never changes, which is what makes this immutable and convert_to in general not.
CREATE FUNCTION palaver.thread_key_digest(key text) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN sha256(convert_to(key, 'UTF8'));

CREATE UNIQUE INDEX threads_by_key ON palaver.threads (site_id, palaver.thread_key_digest(key));

-- No foreign keys: the lock on a hot thread's row would serialise every comment of it.
CREATE TABLE palaver.comments (
    id uuid PRIMARY KEY DEFAULT uuidv7(),
    site_id uuid NOT NULL,
    thread_id uuid NOT NULL,
    parent_id uuid,
    depth integer NOT NULL CHECK (depth >= 0),
    author_id text,
    author_name text,
    author_url text,
    body text,
    state text NOT NULL DEFAULT 'approved' CHECK (state IN ('approved', 'pending', 'rejected', 'spam', 'deleted')),
    version integer NOT NULL DEFAULT 1,
    epoch bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    edited_at timestamptz,
    deleted_at timestamptz
);

-- What no view may hold stays in tables that are not published.
CREATE TABLE palaver.comment_private (
    comment_id uuid PRIMARY KEY,
    email text NOT NULL
);

CREATE TABLE palaver.comment_revisions (
    comment_id uuid NOT NULL,
    version integer NOT NULL,
    body text NOT NULL,
    replaced_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (comment_id, version)
);

-- For the creation of a site, which has no site yet, site_id is the nil UUID.
CREATE TABLE palaver.idempotency_keys (
    site_id uuid NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    resource_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (site_id, key)
);

-- The purge walks from the oldest; block ranges suffice because rows arrive in the order of time.
CREATE INDEX idempotency_keys_by_age ON palaver.idempotency_keys USING brin (created_at);

CREATE PUBLICATION palaver FOR TABLE palaver.fence, palaver.sites, palaver.threads, palaver.comments;
