-- The slots of the change streams that could continue from this member; on a standby, the fully synchronised ones (rule
-- 19). With $1 only those that a connection reads from now.
SELECT coalesce(array_agg(slot_name::text ORDER BY slot_name), '{}') AS names
FROM pg_replication_slots
WHERE slot_type = 'logical' AND failover AND NOT temporary AND invalidation_reason IS NULL AND (active OR NOT $1)
