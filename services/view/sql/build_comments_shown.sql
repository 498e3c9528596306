-- Serves roots (parent_id IS NULL) and replies, both ways round; comments that are not shown are not in it. The
-- condition is that of page.sql, word for word.
CREATE INDEX CONCURRENTLY comments_shown ON comments (thread_id, parent_id, created_at, id)
WHERE state IN ('approved', 'deleted')
