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
    # Most processes never migrate, and of those that do most find nothing to do: each pays for its own imports.
    from services.schema.mark import is_marked

    scripts = _FOLDER / "migrations"
    repeatable = [*sorted((_FOLDER / "procedures").glob("*.sql")), _FOLDER / "grants.sql"]
    if is_marked(url, scripts=scripts, repeatable=repeatable):
        return
    from services.schema.migration import migrate_database

    migrate_database(url, scripts=scripts, repeatable=repeatable)


def statement(name: str) -> str:
    """Return the named SQL statement of the ledger."""
    return _statement(_FOLDER / "sql", name)
