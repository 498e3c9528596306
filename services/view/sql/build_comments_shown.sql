-- Serves roots (parent_id IS NULL) and replies in both directions, if ORDER BY begins with parent_id (page.sql). Hidden
-- comments are not in the index. Its condition must be the same text as in page.sql.
CREATE INDEX CONCURRENTLY comments_shown ON comments (thread_id, parent_id, created_at, id)
WHERE state IN ('approved', 'deleted')
