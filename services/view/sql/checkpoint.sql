-- The position of the view, and the time since it included every change, by the clock of the view's server.
SELECT
    c.epoch, c.lsn, c.fresh_at,
    extract(epoch FROM clock_timestamp() - c.fresh_at)::float8 * 1000 AS staleness_ms
FROM checkpoint AS c
WHERE c.cell = $1
