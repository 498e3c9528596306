-- Creates the roles of the ledger if they are missing. The passwords are settings of the transaction
-- (set_passwords.sql), because a DO block takes no parameters, and the text of a statement must not contain a password.
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
    -- Capture reads the positions of the leader's standbys before it releases a change, and the write API reads them
    -- before it states the position that a strong read has to show.
    GRANT pg_read_all_stats TO palaver_replication, palaver_writer;
END
$$
