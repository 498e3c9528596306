-- How far the view is, and how long ago it had everything, by the view's own clock.
SELECT
    c.epoch, c.lsn, c.fresh_at,
    extract(epoch FROM clock_timestamp() - c.fresh_at)::float8 * 1000 AS staleness_ms
FROM checkpoint AS c
WHERE c.cell = $1
