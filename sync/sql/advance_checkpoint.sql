-- Moves the checkpoint forwards, or updates its freshness at the same position; SQLSTATE PA001 if it is further.
-- $1 cell  $2 epoch  $3 lsn  $4 commit time or NULL  $5 time of freshness; both times in microseconds since 1970
SELECT advance_checkpoint($1, $2, $3, $4, $5)
