-- A commit after that of the fence row, also if an earlier attempt wrote that row: a quorum that has this one has both.
SELECT pg_logical_emit_message(true, 'fence', $1)
