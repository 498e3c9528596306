WITH folded AS (
    DELETE FROM merkle_changes WHERE xid < $1::text::xid8 RETURNING key_hash, count, h1, h2
), sums AS (
    SELECT
        ((f.key_hash >> (64 - 4 * $2)) & ((1::bigint << (4 * $2)) - 1))::integer AS leaf,
        sum(f.count)::integer AS count, bit_xor(f.h1) AS h1, bit_xor(f.h2) AS h2
    FROM folded AS f
    GROUP BY 1
)
INSERT INTO merkle_leaves AS l (leaf, count, h1, h2)
SELECT s.leaf, s.count, s.h1, s.h2 FROM sums AS s
ON CONFLICT (leaf) DO UPDATE SET count = l.count + excluded.count, h1 = l.h1 # excluded.h1, h2 = l.h2 # excluded.h2
