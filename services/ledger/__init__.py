"""The ledger's schema, its write procedures and the SQL that calls them.

Decides which data is stored (tables), what a write does in one round trip (procedures), and which tables the views
receive (the publication `palaver`). Does not know HTTP, pools or the leader: the caller passes the epoch.
Source: ADR 0001; rules 7, 8 and 9 of the failover protocol.

Published migrations stay as they are. The comment of revision 0001 on the BRIN index of `idempotency_keys` is wrong:
rows are in the order of time only until new rows reuse the space of purged ones. Revision 0002 replaces the index.
"""

from pathlib import Path
from typing import Final

from services.schema.failure import MigrationFailed
from services.schema.statements import statement as _statement

__all__ = ["PGBENCH_SCRIPT", "MigrationFailed", "migrate", "statement"]

_FOLDER: Final = Path(__file__).parent

PGBENCH_SCRIPT: Final = _FOLDER / "sql" / "pgbench_post_comment.sql"
"""A pgbench script that posts one comment; run it with `-M prepared -D site=<uuid> -D epoch=<n>`."""


def migrate(url: str) -> None:
    """Bring a ledger to the newest schema. Blocking: run it in a thread.

    Args:
        url: `postgresql://palaver:…@host:port/palaver`, the superuser of the primary.

    Raises:
        MigrationFailed: The ledger cannot be reached, or refused a statement.
    """
    # Imported here, because most processes never migrate, and most migrations have nothing to do.
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
