-- The LSN up to which a quorum has the WAL of this primary, by the setting of which its commits wait: the n-th highest
-- flush LSN of the standbys that count for the quorum; its own flushed LSN if commits wait for none; NULL if unknown.
WITH setting AS (
    SELECT current_setting('synchronous_standby_names') AS names
), wanted AS (
    SELECT names, (regexp_match(names, '^\s*ANY\s+(\d+)', 'i'))[1]::integer AS standbys FROM setting
)
SELECT
    CASE
        WHEN pg_is_in_recovery() THEN NULL
        WHEN names = '' THEN pg_current_wal_flush_lsn()
        WHEN standbys > 0 THEN (
            SELECT r.flush_lsn FROM pg_stat_replication AS r
            WHERE r.sync_state = 'quorum' AND r.flush_lsn IS NOT NULL
            ORDER BY r.flush_lsn DESC OFFSET standbys - 1 LIMIT 1
        )
    END::text AS quorum_lsn,
    CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END::text AS flushed_lsn
FROM wanted
