"""How a database gets its schema and a program its SQL: Alembic in-process, statements in named files.

Knows folders of `.sql` files and revisions; refuses to know what is in them. `services.ledger` and
`services.view` are its two users and say which folder is theirs.
"""
