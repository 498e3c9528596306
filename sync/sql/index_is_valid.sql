-- True: the index is valid. False: its build was interrupted. NULL: there is no index.
SELECT (SELECT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = to_regclass($1))
