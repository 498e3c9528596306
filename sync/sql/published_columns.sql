-- The columns of a table that the change stream has.
SELECT unnest(attnames) FROM pg_publication_tables
WHERE pubname = 'palaver' AND schemaname = 'palaver' AND tablename = %(table)s
