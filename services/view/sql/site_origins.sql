SELECT s.origins FROM sites AS s WHERE s.id = $1
