-- Returns when this member is primary, or after {wait_max}. Any role may run it. It commits before each pause, because a
-- standby that holds a snapshot cannot replay the removal of rows that the snapshot may see.
DO $$
DECLARE
    until timestamptz := clock_timestamp() + interval '{wait_max}';
BEGIN
    WHILE pg_is_in_recovery() AND clock_timestamp() < until LOOP
        COMMIT;
        PERFORM pg_sleep(0.005);
    END LOOP;
END
$$
