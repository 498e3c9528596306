-- comments_shown has replaced it.
DROP INDEX CONCURRENTLY IF EXISTS comments_by_parent
