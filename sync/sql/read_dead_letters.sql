-- These dead letters, those with erased content last: the deletion of their row comes first.
SELECT
    d.id, d.epoch, (d.lsn - '0/0')::bigint AS lsn, d.at, d.reason, d.attempts, d.bytes, d.erased_at IS NOT NULL AS erased,
    d.change::text AS change, d.content_of::text AS content_of
FROM dead_letters AS d
WHERE d.cell = $1 AND d.id = ANY ($2::bigint[])
ORDER BY d.erased_at IS NOT NULL, d.id
