SELECT to_regclass('comments') IS NOT NULL AND to_regclass('dead_letters') IS NOT NULL AS ready
