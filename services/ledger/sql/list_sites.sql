-- Sites after the given id, in the order of ids, which is that of creation.
SELECT s.id, s.name, s.origins
FROM palaver.sites AS s
WHERE s.id > $1
ORDER BY s.id
LIMIT $2
