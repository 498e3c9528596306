-- Whether this member is a standby, after at most $1 polls of 5 ms while it is one; the highest timeline that it knows,
-- and the history of that timeline. The role is read first, so that the timeline of a new primary is its own.
-- Also the LSN at which the oldest WAL file begins. A file name is the timeline, then the position; files that
-- PostgreSQL has created in advance have greater positions.
WITH RECURSIVE looks AS (
    SELECT 0 AS number, pg_is_in_recovery() AS in_recovery
    UNION ALL
    SELECT looks.number + 1, pg_is_in_recovery()
    FROM looks
    CROSS JOIN LATERAL pg_sleep(0.005 + 0 * looks.number)
    WHERE looks.in_recovery AND looks.number < $1
)

SELECT
    role.in_recovery,
    found.timeline,
    kept.oldest,
    pg_read_file('pg_wal/' || lpad(upper(to_hex(found.timeline)), 8, '0') || '.history', true) AS history
FROM (SELECT in_recovery FROM looks ORDER BY number DESC LIMIT 1 OFFSET 0) AS role
CROSS JOIN LATERAL (
    SELECT greatest(
        (SELECT timeline_id FROM pg_control_checkpoint()),
        (
            SELECT max(('x' || left(name, 8))::bit(32)::integer)
            FROM pg_ls_dir('pg_wal') AS name
            WHERE name ~ '^[0-9A-F]{8}\.history$'
        )
    ) AS timeline
    WHERE role.in_recovery IS NOT NULL
) AS found
CROSS JOIN LATERAL (
    SELECT min(
        ('x' || substr(name, 9, 8))::bit(32)::bigint * (1::bigint << 32)
        + ('x' || substr(name, 17, 8))::bit(32)::bigint * pg_size_bytes(current_setting('wal_segment_size'))
    ) AS oldest
    FROM pg_ls_dir('pg_wal') AS name
    WHERE name ~ '^[0-9A-F]{24}$' AND role.in_recovery IS NOT NULL
) AS kept
