INSERT INTO merkle_state AS s (scheme, depth, complete) VALUES ($1, $2, $3)
ON CONFLICT (one) DO UPDATE SET scheme = excluded.scheme, depth = excluded.depth, complete = excluded.complete
