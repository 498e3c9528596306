SELECT m.id, m.xid::text::bigint AS xid, m.key_hash, m.count, m.h1, m.h2, m.batch
FROM merkle_changes AS m
WHERE m.xid >= $1::text::xid8
ORDER BY m.id
