CALL palaver.create_site($1, $2, $3, $4, $5, $6, $7, $8)
