-- Creates the roles of the ledger when they are missing. The passwords come as settings of the
-- transaction, because a DO block takes no parameters and a statement with a password must not be built.
DO $$
DECLARE
    missing record;
BEGIN
    FOR missing IN
        SELECT wanted.name, wanted.attributes, wanted.setting
        FROM (VALUES
            ('palaver_replication', 'LOGIN REPLICATION', 'palaver.replication_password'),
            ('palaver_writer', 'LOGIN', 'palaver.writer_password')
        ) AS wanted (name, attributes, setting)
        WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.name)
    LOOP
        EXECUTE format(
            'CREATE ROLE %I %s PASSWORD %L',
            missing.name, missing.attributes, current_setting(missing.setting)
        );
    END LOOP;
    -- Capture asks how far its leader's standbys are, before it lets a change out; the write API, before it proves what
    -- a strong read must see.
    GRANT pg_read_all_stats TO palaver_replication, palaver_writer;
END
$$
