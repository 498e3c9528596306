"""What a database was brought to last: a mark, and one query that compares it with this version's files.

Decides what the mark stands for. Alembic and SQLAlchemy cost a third of a second of a processor and 20 MB, and nearly
every start of a process, and every new leader of the ledger, finds that there is nothing to do. Refuses to know how a
schema is changed (`migration`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import psycopg
from psycopg.rows import scalar_row

from services.schema.failure import MigrationFailed

CONNECT_TIMEOUT_S: Final = 5

# The mark is the comment of the database. Grants depend on which roles there are, so these are part of it.
READ_MARK: Final = """
    SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()
"""
READ_ROLES: Final = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'palaver%' ORDER BY rolname"


def mark_of(scripts: Path, repeatable: Sequence[Path], roles: Iterable[object]) -> str:
    """Return what stands for these revisions, these files and these roles.

    Args:
        scripts: The Alembic script folder.
        repeatable: SQL files that are executed after the revisions, in order.
        roles: Names of the roles that there are, in order.
    """
    digest = hashlib.sha256()
    revisions = sorted(path for path in (scripts / "versions").iterdir() if path.suffix in {".py", ".sql"})
    for path in (*revisions, *repeatable):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr([str(role) for role in roles]).encode())
    return f"palaver {digest.hexdigest()}"


def is_marked(url: str, *, scripts: Path, repeatable: Sequence[Path]) -> bool:
    """Whether a database was brought to just these files, by roles that there still are.

    Raises:
        MigrationFailed: The server cannot be reached or refused to say.
    """
    try:
        with (
            psycopg.connect(
                url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="palaver-migrate"
            ) as connection,
            connection.cursor(row_factory=scalar_row) as cursor,
        ):
            found = cursor.execute(READ_MARK).fetchone()
            return found == mark_of(scripts, repeatable, cursor.execute(READ_ROLES).fetchall())
    except psycopg.Error as error:
        raise MigrationFailed(str(error).strip()) from error
