-- Keeps a letter whose retry failed, with the new reason.
UPDATE dead_letters SET reason = $3, attempts = attempts + 1, bytes = octet_length(change::text) + octet_length($3)
WHERE cell = $1 AND id = $2
