-- A commit that wrote nothing waits for nobody: this makes it wait when the row was there already.
SELECT pg_logical_emit_message(true, 'fence', $1)
