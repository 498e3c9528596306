-- The checkpoint of a cell.
SELECT epoch, lsn FROM checkpoint WHERE cell = $1
