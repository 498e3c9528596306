-- Returns when this member is primary, or after a quarter of a second. No snapshot is held for longer than a look: one
-- that is held keeps a standby from replaying what was vacuumed.
DO $$
DECLARE
    until timestamptz := clock_timestamp() + interval '250 ms';
BEGIN
    WHILE pg_is_in_recovery() AND clock_timestamp() < until LOOP
        COMMIT;
        PERFORM pg_sleep(0.005);
    END LOOP;
END
$$
