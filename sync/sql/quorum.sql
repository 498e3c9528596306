-- How far the WAL of this primary is on a quorum, in the words of the quorum that its commits wait for: the n-th of the
-- standbys that count for it, or everything that is flushed when it waits for none. NULL: not known, so nothing.
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
