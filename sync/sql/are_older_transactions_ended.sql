-- Whether all transactions up to this one have ended for all sessions. A commit that waits for its quorum has not.
SELECT pg_snapshot_xmin(pg_current_snapshot()) > %s::xid8
