CALL palaver.edit_comment($1, $2, $3, $4, $5, $6, $7)
