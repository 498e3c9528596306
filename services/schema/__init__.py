"""Runs migrations (Alembic, inside the process) and loads SQL statements from named files.

Knows folders of `.sql` files and revisions, but not their contents. `services.ledger` and `services.view` use it and
pass their own folders.
"""
