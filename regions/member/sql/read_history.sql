-- The timeline that a member writes or follows, and where its history left each earlier one.
SELECT pg_read_file('pg_wal/' || lpad(upper(to_hex($1::integer)), 8, '0') || '.history', true) AS history
