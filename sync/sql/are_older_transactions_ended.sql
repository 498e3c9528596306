-- Whether all transactions up to this one have ended for everybody who looks: those that wait for a quorum have not.
SELECT pg_snapshot_xmin(pg_current_snapshot()) > %s::xid8
