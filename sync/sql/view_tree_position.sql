SELECT
    c.epoch, c.lsn, pg_snapshot_xmin(pg_current_snapshot())::text AS xmin, s.scheme, s.depth, s.complete
FROM (SELECT) AS one
LEFT JOIN checkpoint AS c ON c.cell = $1
LEFT JOIN merkle_state AS s ON true
