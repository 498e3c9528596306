-- comments_shown replaces this index.
DROP INDEX CONCURRENTLY IF EXISTS comments_by_parent
