SELECT site, key, version FROM project_rows($1, $2, $3, $4, $5)
