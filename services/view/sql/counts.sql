-- Counts of approved comments by thread key; threads without comments have no row.
SELECT t.key, t.count
FROM threads AS t
WHERE t.site_id = $1
    AND thread_key_digest(t.key) = ANY (
        SELECT thread_key_digest(wanted) FROM unnest($2::text[]) AS wanted
    )
