-- The read API only reads. A bare test database has no such role.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'palaver_reader') THEN
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA public TO palaver_reader;
    GRANT SELECT ON sites, threads, comments, checkpoint TO palaver_reader;
END
$$;
