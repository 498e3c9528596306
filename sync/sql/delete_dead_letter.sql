DELETE FROM dead_letters WHERE cell = $1 AND id = $2
