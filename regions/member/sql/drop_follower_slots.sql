-- A slot that nobody will read holds back WAL until it is lost. One that is being read is dropped another time.
WITH found AS MATERIALIZED (
    SELECT slot_name, active
    FROM pg_replication_slots
    WHERE slot_type = 'physical' AND NOT temporary AND slot_name = ANY ($1::text[])
),
dropped AS MATERIALIZED (
    SELECT pg_drop_replication_slot(slot_name) FROM found WHERE NOT active
)
SELECT (SELECT count(*) FROM found WHERE active) AS active, (SELECT count(*) FROM dropped) AS dropped
