DELETE FROM palaver.idempotency_keys AS k
WHERE k.ctid = ANY (ARRAY(
    SELECT old.ctid FROM palaver.idempotency_keys AS old
    WHERE old.created_at < now() - make_interval(hours => $1)
    LIMIT $2
))
RETURNING 1
