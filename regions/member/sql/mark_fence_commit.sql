-- A commit after that of the fence row, whoever wrote it: where a quorum has this one it has that one, too.
SELECT pg_logical_emit_message(true, 'fence', $1)
