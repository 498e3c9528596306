SELECT site, key, version FROM project_and_advance($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
