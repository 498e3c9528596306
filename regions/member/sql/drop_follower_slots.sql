-- A slot without a reader retains WAL until PostgreSQL invalidates it. An active slot cannot be dropped; a later call
-- drops it.
WITH found AS MATERIALIZED (
    SELECT slot_name, active
    FROM pg_replication_slots
    WHERE slot_type = 'physical' AND NOT temporary AND slot_name = ANY ($1::text[])
),
dropped AS MATERIALIZED (
    SELECT pg_drop_replication_slot(slot_name) FROM found WHERE NOT active
)
SELECT (SELECT count(*) FROM found WHERE active) AS active, (SELECT count(*) FROM dropped) AS dropped
