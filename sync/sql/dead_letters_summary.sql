-- The number of dead letters by the kind of their reason.
SELECT split_part(reason, ':', 1) AS kind, count(*) AS letters FROM dead_letters WHERE cell = $1 GROUP BY kind ORDER BY kind
