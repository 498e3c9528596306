-- The tables that the change stream has.
SELECT tablename::text FROM pg_publication_tables WHERE pubname = 'palaver' AND schemaname = 'palaver' ORDER BY 1
