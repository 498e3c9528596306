-- Whether a write of an epoch may go on. The newest fence row is the only epoch that may write. Read before the work,
-- on the primary that commits it: a primary of an older epoch cannot get its commit acknowledged, and a newer one
-- refuses the stale caller here.
--
-- The lock is the gate of a planned switchover: shared until this commit has its quorum, and refused at once while the
-- agent holds it alone, because it wants to know that no write is under way.
CREATE OR REPLACE FUNCTION palaver.is_current_epoch(p_epoch bigint) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN pg_try_advisory_xact_lock_shared(hashtextextended('palaver.write_gate', 0))
    AND p_epoch IS NOT DISTINCT FROM (SELECT max(f.epoch) FROM palaver.fence AS f);
