"""The ledger's schema, its write procedures and the SQL that calls them.

Decides what is a fact (tables), what one write does in one round trip (procedures), and what is published to
the views (the publication `palaver`). Refuses to know HTTP, pools and who leads: the caller passes the epoch.
Source: adr on the ledger; rules 7, 8 and 9 of the failover protocol.
"""

from pathlib import Path
from typing import Final

from services.schema.failure import MigrationFailed
from services.schema.statements import statement as _statement

__all__ = ["PGBENCH_SCRIPT", "MigrationFailed", "migrate", "statement"]

_FOLDER: Final = Path(__file__).parent

PGBENCH_SCRIPT: Final = _FOLDER / "sql" / "pgbench_post_comment.sql"
"""The insert of one comment as a pgbench script; run it with `-M prepared -D site=<uuid> -D epoch=<n>`."""


def migrate(url: str) -> None:
    """Bring a ledger to the newest schema. Blocking: run it in a thread.

    Args:
        url: `postgresql://palaver:…@host:port/palaver`, the superuser of the primary.

    Raises:
        MigrationFailed: The ledger cannot be reached, or refused a statement.
    """
    # Alembic and SQLAlchemy cost a quarter of a second and 20 MB, which the processes that only call do without.
    from services.schema.migration import migrate_database

    procedures = sorted((_FOLDER / "procedures").glob("*.sql"))
    migrate_database(url, scripts=_FOLDER / "migrations", repeatable=[*procedures, _FOLDER / "grants.sql"])


def statement(name: str) -> str:
    """Return the named SQL statement of the ledger."""
    return _statement(_FOLDER / "sql", name)
