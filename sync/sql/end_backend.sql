-- Terminates a walsender of the own role that holds a slot for a connection that is gone.
SELECT pg_terminate_backend({pid})
