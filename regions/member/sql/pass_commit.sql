-- A commit that writes, so that it waits for the quorum.
SELECT pg_logical_emit_message(true, 'quorum', '')
