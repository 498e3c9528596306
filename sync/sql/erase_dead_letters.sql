-- Erases the content of letters that quote these rows: $3 names the erased columns of the rows' table $2.
UPDATE dead_letters AS d SET
    change = jsonb_set(
        d.change, '{row}', (d.change -> 'row') || (SELECT jsonb_object_agg(c, NULL::text) FROM unnest($3::text[]) AS c)
    ),
    erased_at = now()
WHERE d.cell = $1 AND d.change ->> 'table' = $2 AND d.content_of = ANY ($4::text[]::jsonb[])
    AND EXISTS (SELECT FROM unnest($3::text[]) AS c WHERE d.change -> 'row' ->> c IS NOT NULL)
