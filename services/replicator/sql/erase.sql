-- Removes rows that the ledger has removed, and returns what that moved, in the form of `project.sql`.
-- $1 sites  $2 threads  $3 comments  $4 LSN of the newest of these changes
WITH erased_sites AS (
    DELETE FROM sites WHERE id = ANY ($1::uuid[])
),
erased_threads AS (
    DELETE FROM threads WHERE id = ANY ($2::uuid[])
),
erased_comments AS (
    DELETE FROM comments WHERE id = ANY ($3::uuid[])
    RETURNING
        thread_id, parent_id,
        (state = 'approved')::integer AS approved,
        (state IN ('approved', 'deleted'))::integer AS shown
)
SELECT thread_id AS id, 'thread' AS kind, -sum(approved) AS delta, $4::bigint AS lsn
FROM erased_comments GROUP BY thread_id
UNION ALL
SELECT parent_id, 'parent', -sum(shown), 0 FROM erased_comments
WHERE parent_id IS NOT NULL
GROUP BY parent_id
HAVING sum(shown) <> 0
