-- Deletes letters of rows that are erased with a row of another table, such as the votes of a comment.
DELETE FROM dead_letters AS d
WHERE d.cell = $1 AND d.change ->> 'table' <> $2 AND d.content_of = ANY ($3::text[]::jsonb[])
