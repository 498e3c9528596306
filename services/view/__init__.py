"""The view's schema, the SQL that reads and writes it, and the protocol of the page cache in front of it.

Decides how one statement reads a thread page (`sql/page.sql`), how one statement writes rows, counters and the
checkpoint (`functions`), and which Redis keys and scripts the writer (replicator) and the readers (read API) share
(`cache`). Does not know how changes arrive at the view.
"""

from pathlib import Path
from typing import Final

from services.schema.failure import MigrationFailed
from services.schema.statements import statement as _statement

__all__ = ["MigrationFailed", "migrate", "statement"]

_FOLDER: Final = Path(__file__).parent


def migrate(url: str) -> None:
    """Bring a view to the newest schema. Blocking: run it in a thread.

    Args:
        url: `postgresql://palaver_apply:…@host:port/palaver`, the owner of the database.

    Raises:
        MigrationFailed: The view cannot be reached, or refused a statement.
    """
    # Imported here, because most processes never migrate, and most migrations have nothing to do.
    from services.schema.mark import is_marked

    scripts = _FOLDER / "migrations"
    repeatable = [*sorted((_FOLDER / "functions").glob("*.sql")), _FOLDER / "grants.sql"]
    if is_marked(url, scripts=scripts, repeatable=repeatable):
        return
    from services.schema.migration import migrate_database

    migrate_database(url, scripts=scripts, repeatable=repeatable)


def statement(name: str) -> str:
    """Return the named SQL statement of the view."""
    return _statement(_FOLDER / "sql", name)
