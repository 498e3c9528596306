-- Rule 18: what lets a commit return before a quorum has it, because it makes `synchronous_commit` weaker than `on`.
-- What a session sets for itself is in its own memory: nobody else can see it.
WITH found AS (
    -- Of all databases, whichever is asked. A setting of all roles in all databases is one of the cluster.
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
    -- Not regprocedure: it leaves out a schema that is on the search path of who asks.
    SELECT
        'function',
        p.pronamespace::regnamespace::text || '.' || quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')',
        p.proconfig
    FROM pg_proc AS p
    WHERE p.proconfig IS NOT NULL
    UNION ALL
    -- Who asks may be overridden itself, and then sees that instead of what is in force for others.
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
    -- The values are kept as they were written. One that is not known to be strong is taken for weak.
    AND lower(split_part(one.setting, '=', 2)) NOT IN ('on', 'true', 'yes', '1', 'remote_apply')
ORDER BY found.scope, found.name
