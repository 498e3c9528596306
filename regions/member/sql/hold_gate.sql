-- Every write holds this lock shared until its commit has its quorum, and gives up at once when it cannot have it:
-- whoever holds it alone knows that no write is under way. `palaver.is_current_epoch` takes it.
SELECT pg_advisory_lock(hashtextextended('palaver.write_gate', 0))
