-- Where apply stands.
SELECT epoch, lsn FROM checkpoint WHERE cell = $1
