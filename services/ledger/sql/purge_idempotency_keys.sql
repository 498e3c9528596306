-- Deletes the oldest keys that were created in (p, q] of service time, at most one batch.
-- $1 p: no older keys are left, so the scan skips index entries of deleted keys  $2 q  $3 keys at most
DELETE FROM palaver.idempotency_keys AS k
WHERE k.ctid = ANY (ARRAY(
    SELECT old.ctid FROM palaver.idempotency_keys AS old
    WHERE old.made_at_s > $1 AND old.made_at_s <= $2
    ORDER BY old.made_at_s
    LIMIT $3
))
RETURNING 1
