-- The write gate. Every write holds this lock in shared mode until its commit has its quorum, and fails at once if it
-- cannot get it, so while this session holds it exclusively, no write is running. `palaver.is_current_epoch` takes it.
SELECT pg_advisory_lock(hashtextextended('palaver.write_gate', 0))
