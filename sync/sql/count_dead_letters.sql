-- The number of dead letters.
SELECT count(*) FROM dead_letters WHERE cell = $1
