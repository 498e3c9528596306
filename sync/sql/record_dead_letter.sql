-- Stores a change that the view rejected, with the reason, unless the table is full ($9 letters, $10 bytes). The same
-- change is stored once: parts of a large transaction and snapshots deliver it again.
-- The bytes do not exceed the bound with this letter.
WITH letter AS (
    SELECT $4::jsonb AS change, octet_length($4::text) + octet_length($5::text) AS bytes
), stored AS (
    SELECT count(*) AS letters, coalesce(sum(d.bytes), 0) AS bytes FROM dead_letters AS d WHERE d.cell = $1
), known AS (
    SELECT d.id FROM dead_letters AS d, letter AS l WHERE d.cell = $1 AND d.change = l.change LIMIT 1
), added AS (
    INSERT INTO dead_letters (cell, epoch, lsn, change, reason, content_of, erases, erased_at, bytes)
    SELECT $1, $2, $3, l.change, $5, $6::jsonb, $7, CASE WHEN $8 THEN now() END, l.bytes
    FROM letter AS l, stored AS s
    WHERE NOT EXISTS (SELECT FROM known) AND s.letters < $9 AND s.bytes + l.bytes <= $10
    RETURNING id
)
SELECT CASE
    WHEN EXISTS (SELECT FROM added) THEN 'added'
    WHEN EXISTS (SELECT FROM known) THEN 'known'
    ELSE 'full'
END AS outcome
