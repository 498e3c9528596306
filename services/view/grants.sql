-- The read API only reads. A bare test database has no such role.
-- The tables of the registry are those that have a merge function.
DO $$
DECLARE
    v_table text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'palaver_reader') THEN
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA public TO palaver_reader;
    GRANT SELECT ON checkpoint TO palaver_reader;
    FOR v_table IN
        SELECT substr(p.proname, length('merge_') + 1) FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'merge\_%'
    LOOP
        EXECUTE format('GRANT SELECT ON %I TO palaver_reader', v_table);
    END LOOP;
END
$$;
