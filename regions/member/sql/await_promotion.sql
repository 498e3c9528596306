-- Returns when this member is primary, or after 4 s, which is how long a follower waits for that. Any role may run it. No
-- snapshot is held for longer than a look: one that is held keeps a standby from replaying what was vacuumed.
DO $$
DECLARE
    until timestamptz := clock_timestamp() + interval '4 s';
BEGIN
    WHILE pg_is_in_recovery() AND clock_timestamp() < until LOOP
        COMMIT;
        PERFORM pg_sleep(0.005);
    END LOOP;
END
$$
