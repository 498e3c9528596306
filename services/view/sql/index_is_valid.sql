-- True: built. False: a build of it was interrupted. NULL: there is none.
SELECT (SELECT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = to_regclass($1))
