-- The announced schema of each table, in text format.
SELECT name, schema::text FROM palaver.table_schemas ORDER BY name
