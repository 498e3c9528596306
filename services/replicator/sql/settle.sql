-- Moves the counters that `project.sql` says have moved, and returns the pages that are new by that.
-- $1, $2 parents and the change of their replies
-- $3, $4, $5 threads, the change of their count, and the LSN of their newest change
-- A page's version is that LSN, so that every region gives the same page the same version; where LSNs fail
-- to grow (history was replaced after a failover) it still grows.
WITH replies AS (
    UPDATE comments AS c SET reply_count = c.reply_count + moved.delta
    FROM unnest($1::uuid[], $2::integer[]) AS moved (id, delta)
    WHERE c.id = moved.id
)
UPDATE threads AS t SET
    count = t.count + moved.delta,
    page_version = greatest(t.page_version + 1, moved.lsn)
FROM unnest($3::uuid[], $4::integer[], $5::bigint[]) AS moved (id, delta, lsn)
WHERE t.id = moved.id
RETURNING t.site_id AS site, t.key, t.page_version AS version
