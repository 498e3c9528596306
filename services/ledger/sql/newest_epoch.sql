-- The epoch under which this ledger was last written to; NULL before the first.
SELECT max(f.epoch) AS epoch FROM palaver.fence AS f
