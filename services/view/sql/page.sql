-- Reads one thread page in one statement, so that all its rows come from one snapshot.
--
-- $1 site  $2 thread key  $3 mode: newest | oldest | replies  $4 parent (replies only)
-- $5, $6 created_at and id after which the page begins  $7 comments of the first level  $8 replies of one comment
-- $9 levels  $10 comments in all  $11 bytes of bodies in all, the last body may exceed it
--
-- No row: unknown site. One row without thread: unknown thread. Otherwise the rows of the tree, level by level, each
-- level in the order of its parents: the recursion's working table and the lateral join keep that order. The limit of
-- comments therefore cuts the replies of each comment to a prefix, and a cursor continues after the prefix.
-- Each list of siblings is ordered by parent_id first. All siblings have the same parent_id, but PostgreSQL does not
-- infer an order from IS NULL: without parent_id in ORDER BY, it reads and sorts all roots of the thread instead of the
-- first entries of the index. The condition on state must be the same text as in the index comments_shown, so that
-- hidden comments are not read.
-- The first level has one comment more than $7, without its replies, which only shows that there is a next page. For
-- the same reason two comments are read, however long the first is.
SELECT
    t.id AS thread_id, t.title AS thread_title, t.state AS thread_state, t.count AS thread_count,
    t.page_version, tree.*
FROM sites AS s
LEFT JOIN threads AS t
    ON t.site_id = s.id AND thread_key_digest(t.key) = thread_key_digest($2)
LEFT JOIN LATERAL (
    WITH RECURSIVE shown AS (
        SELECT seed.*, 1 AS level, row_number() OVER () AS ordinal FROM (
            (
                SELECT c.* FROM comments AS c
                WHERE $3 = 'newest' AND c.thread_id = t.id AND c.parent_id IS NULL
                    AND c.state IN ('approved', 'deleted')
                    AND (c.created_at, c.id) < ($5::timestamptz, $6::uuid)
                ORDER BY c.parent_id DESC, c.created_at DESC, c.id DESC LIMIT $7::integer + 1
            )
            UNION ALL
            (
                SELECT c.* FROM comments AS c
                WHERE $3 = 'oldest' AND c.thread_id = t.id AND c.parent_id IS NULL
                    AND c.state IN ('approved', 'deleted')
                    AND (c.created_at, c.id) > ($5::timestamptz, $6::uuid)
                ORDER BY c.parent_id, c.created_at, c.id LIMIT $7::integer + 1
            )
            UNION ALL
            (
                SELECT c.* FROM comments AS c
                WHERE $3 = 'replies' AND c.thread_id = t.id AND c.parent_id = $4::uuid
                    AND c.state IN ('approved', 'deleted')
                    AND (c.created_at, c.id) > ($5::timestamptz, $6::uuid)
                ORDER BY c.parent_id, c.created_at, c.id LIMIT $7::integer + 1
            )
        ) AS seed
        UNION ALL
        SELECT reply.*, shown.level + 1, shown.ordinal
        FROM shown
        CROSS JOIN LATERAL (
            SELECT c.* FROM comments AS c
            WHERE c.thread_id = shown.thread_id AND c.parent_id = shown.id
                AND c.state IN ('approved', 'deleted')
            ORDER BY c.parent_id, c.created_at, c.id LIMIT $8::integer
        ) AS reply
        WHERE shown.level < $9::integer AND shown.reply_count > 0 AND shown.ordinal <= $7::integer
    )
    SELECT
        shown.id, shown.parent_id, shown.author_id, shown.author_name, shown.author_url, shown.body,
        shown.state, shown.version, shown.up, shown.down, shown.reply_count, shown.created_at, shown.edited_at,
        shown.level
    FROM (
        SELECT
            shown.*, row_number() OVER before_it AS place,
            coalesce(sum(octet_length(shown.body)) OVER before_it, 0) AS bytes_before
        FROM shown
        WINDOW before_it AS (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
        LIMIT $10::integer
    ) AS shown
    WHERE shown.bytes_before <= $11::bigint OR shown.place <= 2
) AS tree ON true
WHERE s.id = $1
