-- The columns of a table that has a primary key: name, type, whether it is in the key. No row: there is no such table.
SELECT a.attname::text, format_type(a.atttypid, NULL), a.attnum = ANY (i.indkey)
FROM pg_attribute AS a
JOIN pg_index AS i ON i.indrelid = a.attrelid AND i.indisprimary
WHERE a.attrelid = to_regclass(%(table)s) AND a.attnum > 0 AND NOT a.attisdropped
