-- Forgets the oldest keys that were made in (p, q] of service time, a batch at most.
-- $1 p, up to which none is left: the index is not walked over entries of keys that are gone  $2 q  $3 keys at most
DELETE FROM palaver.idempotency_keys AS k
WHERE k.ctid = ANY (ARRAY(
    SELECT old.ctid FROM palaver.idempotency_keys AS old
    WHERE old.made_at_s > $1 AND old.made_at_s <= $2
    ORDER BY old.made_at_s
    LIMIT $3
))
RETURNING 1
