-- Returns whether a write of this epoch is allowed: only the epoch of the newest fence row is. It is read before the
-- write, on the primary that commits it: a primary of an older epoch gets no acknowledgement for its commit, and a
-- newer one refuses the outdated caller here.
--
-- The lock is the gate of a planned switchover: a write shares it until its commit has a quorum. The agent takes it
-- exclusively to make sure that no write is running; writes then fail at once.
CREATE OR REPLACE FUNCTION palaver.is_current_epoch(p_epoch bigint) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN pg_try_advisory_xact_lock_shared(hashtextextended('palaver.write_gate', 0))
    AND p_epoch IS NOT DISTINCT FROM (SELECT max(f.epoch) FROM palaver.fence AS f);
