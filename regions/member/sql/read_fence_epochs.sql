-- The epochs whose fence rows this member has replayed, the newest first.
SELECT epoch FROM palaver.fence ORDER BY epoch DESC LIMIT $1
