-- How many changes the view has refused.
SELECT count(*) FROM dead_letters WHERE cell = $1
