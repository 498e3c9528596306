-- The change streams that could go on from this member: their slots, on a standby those that are copied whole (rule 19);
-- with $1 only those that somebody reads from now.
SELECT coalesce(array_agg(slot_name::text ORDER BY slot_name), '{}') AS names
FROM pg_replication_slots
WHERE slot_type = 'logical' AND failover AND NOT temporary AND invalidation_reason IS NULL AND (active OR NOT $1)
