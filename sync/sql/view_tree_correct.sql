INSERT INTO merkle_changes (key_hash, count, h1, h2) SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bigint[])
