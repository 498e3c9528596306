-- The highest timeline that this member has heard of: of its last checkpoint, or of a history file.
SELECT greatest(
    (SELECT timeline_id FROM pg_control_checkpoint()),
    (
        SELECT max(('x' || left(name, 8))::bit(32)::integer)
        FROM pg_ls_dir('pg_wal') AS name
        WHERE name ~ '^[0-9A-F]{8}\.history$'
    )
) AS timeline
