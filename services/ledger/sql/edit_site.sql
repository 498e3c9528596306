CALL palaver.edit_site($1, $2, $3, $4, $5)
