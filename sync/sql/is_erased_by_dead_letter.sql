-- Whether a letter erases a row.
SELECT EXISTS (SELECT FROM dead_letters AS d WHERE d.cell = $1 AND d.content_of = $2::text::jsonb AND d.erases) AS erased
