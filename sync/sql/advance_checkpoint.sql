-- Moves the checkpoint forwards, or refreshes it where it stands; SQLSTATE PA001 when it is already further.
-- $1 cell  $2 epoch  $3 lsn  $4 commit time or NULL  $5 time of freshness, both microseconds since 1970
SELECT advance_checkpoint($1, $2, $3, $4, $5)
