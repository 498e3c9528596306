-- How long leaders have served, added up by whichever leads from its monotonic clock. No wall clock moves it, and the
-- next leader goes on from here.
CREATE TABLE palaver.service_time (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    seconds bigint NOT NULL CHECK (seconds >= 0),
    purged_s bigint NOT NULL  -- no key that was made up to then is left
);
INSERT INTO palaver.service_time (seconds, purged_s) VALUES (0, -1);

CREATE FUNCTION palaver.service_seconds() RETURNS bigint
LANGUAGE sql STABLE
RETURN (SELECT t.seconds FROM palaver.service_time AS t);

-- Keys that are there count as made now: they live a day more. The constant first, because it rewrites no row.
ALTER TABLE palaver.idempotency_keys ADD COLUMN made_at_s bigint NOT NULL DEFAULT 0;
ALTER TABLE palaver.idempotency_keys ALTER COLUMN made_at_s SET DEFAULT palaver.service_seconds();

-- Block ranges lose the order of time as soon as rows take the place of purged ones. Keys of one minute are equal, so
-- that this index keeps each once with a list of its rows.
DROP INDEX palaver.idempotency_keys_by_age;
CREATE INDEX idempotency_keys_by_age ON palaver.idempotency_keys (made_at_s);

COMMENT ON COLUMN palaver.idempotency_keys.created_at IS 'For people. Nothing is decided by it: clocks jump.';
