-- Adds service time in the current epoch, and stores up to which service time keys are purged.
-- $1 epoch  $2 seconds  $3 purged up to. No row: the epoch is over.
UPDATE palaver.service_time AS t SET seconds = t.seconds + $2, purged_s = greatest(t.purged_s, $3)
WHERE palaver.is_current_epoch($1)
RETURNING t.seconds, t.purged_s
