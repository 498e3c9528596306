-- Request the promotion and return at once. The agent polls for its end, which takes a tenth of the time that
-- pg_promote itself would wait.
SELECT pg_promote(false)
