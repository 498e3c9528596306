-- The newest fence row is the only epoch that may write. Read before the work, on the primary that commits it:
-- a primary of an older epoch cannot get its commit acknowledged, and a newer one refuses the stale caller here.
CREATE OR REPLACE FUNCTION palaver.is_current_epoch(p_epoch bigint) RETURNS boolean
LANGUAGE sql STABLE
RETURN p_epoch IS NOT DISTINCT FROM (SELECT max(f.epoch) FROM palaver.fence AS f);
