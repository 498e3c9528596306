-- Rule 18: settings that let a commit return before a quorum has it, because they make `synchronous_commit` weaker than
-- `on`. The settings that a session makes for itself are in its own memory, and other sessions cannot see them.
WITH found AS (
    -- The table has the settings of all databases. A setting for all roles in all databases has the scope cluster.
    SELECT
        CASE
            WHEN s.setrole = 0 AND s.setdatabase = 0 THEN 'cluster'
            WHEN s.setrole = 0 THEN 'database'
            WHEN s.setdatabase = 0 THEN 'role'
            ELSE 'role in database'
        END AS scope,
        CASE
            WHEN s.setrole = 0 AND s.setdatabase = 0 THEN 'all roles'
            WHEN s.setrole = 0 THEN quote_ident(d.datname)
            WHEN s.setdatabase = 0 THEN s.setrole::regrole::text
            ELSE s.setrole::regrole::text || ' in ' || quote_ident(d.datname)
        END AS name,
        s.setconfig AS settings
    FROM pg_db_role_setting AS s
    LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
    UNION ALL
    -- Not regprocedure, which omits the schema if it is on the search path of the session.
    SELECT
        'function',
        p.pronamespace::regnamespace::text || '.' || quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')',
        p.proconfig
    FROM pg_proc AS p
    WHERE p.proconfig IS NOT NULL
    UNION ALL
    -- If this session has an override itself, pg_settings shows that value, not the one in force for other sessions.
    SELECT 'cluster', 'configuration', ARRAY['synchronous_commit=' || CASE
        WHEN g.source IN ('global', 'database', 'user', 'database user') THEN coalesce((
            SELECT f.setting FROM pg_file_settings AS f WHERE lower(f.name) = g.name ORDER BY f.seqno DESC LIMIT 1
        ), g.boot_val)
        ELSE g.setting
    END]
    FROM pg_settings AS g
    WHERE g.name = 'synchronous_commit'
)
SELECT found.scope, found.name, split_part(one.setting, '=', 2) AS value
FROM found
CROSS JOIN LATERAL unnest(found.settings) AS one (setting)
WHERE split_part(one.setting, '=', 1) = 'synchronous_commit'
    -- The values are as they were written. A value that is not known to be strong counts as weak.
    AND lower(split_part(one.setting, '=', 2)) NOT IN ('on', 'true', 'yes', '1', 'remote_apply')
ORDER BY found.scope, found.name
