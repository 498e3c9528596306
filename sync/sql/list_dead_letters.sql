-- Dead letters after an id, oldest first, without the image of the row.
SELECT
    d.id, d.epoch, (d.lsn - '0/0')::bigint AS lsn, d.at, d.reason, d.attempts, d.bytes, d.erased_at IS NOT NULL AS erased,
    d.change ->> 'table' AS table, d.change ->> 'op' AS op, (d.change -> 'key')::text AS key
FROM dead_letters AS d
WHERE d.cell = $1 AND d.id > $2
ORDER BY d.id
LIMIT $3
