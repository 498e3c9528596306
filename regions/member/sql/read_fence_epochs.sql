-- The epochs of the newest fence rows that this member has, newest first.
SELECT epoch FROM palaver.fence ORDER BY epoch DESC LIMIT $1
