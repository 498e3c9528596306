-- Comments and threads whose derived values differ from the rows; a comment comes with its thread, whose page is new then.
WITH replies AS (
    SELECT r.parent_id AS id, count(*) AS replies FROM comments AS r
    WHERE r.parent_id IS NOT NULL AND r.state IN ('approved', 'deleted')
    GROUP BY r.parent_id
), tallies AS (
    SELECT
        v.comment_id AS id, count(*) FILTER (WHERE v.value = 1) AS up, count(*) FILTER (WHERE v.value = -1) AS down
    FROM votes AS v
    GROUP BY v.comment_id
), comment_counts AS (
    SELECT c.thread_id, count(*) AS comments FROM comments AS c WHERE c.state = 'approved' GROUP BY c.thread_id
)
SELECT c.thread_id AS thread, c.id AS comment
FROM comments AS c
LEFT JOIN replies AS r ON r.id = c.id
LEFT JOIN tallies AS t ON t.id = c.id
WHERE (c.reply_count, c.up, c.down) IS DISTINCT FROM (coalesce(r.replies, 0), coalesce(t.up, 0), coalesce(t.down, 0))
UNION ALL
SELECT t.id, NULL FROM threads AS t
LEFT JOIN comment_counts AS n ON n.thread_id = t.id
WHERE t.count IS DISTINCT FROM coalesce(n.comments, 0)
