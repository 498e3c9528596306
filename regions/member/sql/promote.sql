-- Ask for promotion and return at once; the end is seen by polling, which takes a tenth of pg_promote's own wait.
SELECT pg_promote(false)
