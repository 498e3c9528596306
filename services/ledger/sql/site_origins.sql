SELECT s.origins FROM palaver.sites AS s WHERE s.id = $1
