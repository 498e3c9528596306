-- Whether there is a merge function with this name.
SELECT to_regprocedure(%(name)s || '(json, json, bigint)') IS NOT NULL
