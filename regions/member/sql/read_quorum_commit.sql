-- The newest LSN that a quorum has flushed. The statement also writes and flushes a small WAL record, so that this LSN
-- advances; the answer is what the standbys had confirmed before that.
-- $1 standbys  $2 how many of them a commit waits for  $3 whether to write also while the write gate is closed: the WAL
-- of a leader that hands over must not grow beyond what its target has
WITH written AS MATERIALIZED (
    SELECT CASE
        WHEN $3::boolean OR NOT EXISTS (
            SELECT FROM pg_locks
            WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock' AND granted
                AND (classid::bigint << 32) | objid::bigint = hashtextextended('palaver.write_gate', 0)
        )
        THEN pg_logical_emit_message(false, 'heartbeat', '', true)
    END AS lsn
)
SELECT CASE
    WHEN $2::integer = 0 THEN (SELECT lsn FROM written)
    ELSE (
        SELECT least(r.flush_lsn, (SELECT lsn FROM written)) FROM pg_stat_replication AS r
        WHERE r.application_name = ANY ($1::text[]) AND r.flush_lsn IS NOT NULL
        ORDER BY r.flush_lsn DESC OFFSET greatest($2::integer - 1, 0) LIMIT 1
    )
END AS lsn
