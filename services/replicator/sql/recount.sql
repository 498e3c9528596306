SELECT site, key, version FROM recount($1, $2, $3)
