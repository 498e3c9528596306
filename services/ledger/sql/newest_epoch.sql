-- The epoch of the newest fence row; NULL before the first.
SELECT max(f.epoch) AS epoch FROM palaver.fence AS f
