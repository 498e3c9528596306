-- One comment of a site with its thread's key. No row: unknown site. A row without id: unknown comment.
SELECT
    t.key AS thread_key, c.id, c.parent_id, c.author_id, c.author_name, c.author_url, c.body, c.state,
    c.version, c.up, c.down, c.reply_count, c.created_at, c.edited_at
FROM sites AS s
LEFT JOIN comments AS c ON c.id = $2 AND c.site_id = s.id AND c.state IN ('approved', 'deleted')
LEFT JOIN threads AS t ON t.id = c.thread_id
WHERE s.id = $1
