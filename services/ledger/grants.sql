-- The procedures run with the rights of their caller, because one that is SECURITY DEFINER may not COMMIT:
-- so the writer gets exactly the table rights they need. A bare test database has no such role.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'palaver_writer') THEN
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA palaver TO palaver_writer;
    GRANT SELECT ON palaver.fence TO palaver_writer;
    GRANT SELECT, INSERT ON palaver.site_keys, palaver.threads TO palaver_writer;
    GRANT SELECT, INSERT, UPDATE ON palaver.sites, palaver.comments TO palaver_writer;
    GRANT SELECT, INSERT, UPDATE, DELETE ON palaver.votes TO palaver_writer;
    GRANT SELECT, UPDATE ON palaver.service_time TO palaver_writer;
    GRANT SELECT, INSERT, DELETE
        ON palaver.comment_private, palaver.comment_revisions, palaver.idempotency_keys TO palaver_writer;
    GRANT EXECUTE ON ALL ROUTINES IN SCHEMA palaver TO palaver_writer;
END
$$;
-- A change stream of a consumer that has nothing must begin with the first fence row, which is read for it. A snapshot
-- reads all published tables.
DO $$
DECLARE
    v_table text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'palaver_replication') THEN
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA palaver TO palaver_replication;
    FOR v_table IN SELECT p.tablename FROM pg_publication_tables AS p WHERE p.pubname = 'palaver' LOOP
        EXECUTE format('GRANT SELECT ON palaver.%I TO palaver_replication', v_table);
    END LOOP;
END
$$;
