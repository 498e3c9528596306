SELECT pg_postmaster_start_time()::text
