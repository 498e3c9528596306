"""Checks with one query whether a database needs a migration: compares its mark with a hash of this version's files.

Decides which files and roles the mark covers. The check exists because Alembic and SQLAlchemy cost a third of a second
of CPU time and 20 MB, and nearly every start of a process and every new leader of the ledger has nothing to migrate.
Does not know how a schema is changed (`migration`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import psycopg
from psycopg.rows import scalar_row

from services.schema.failure import MigrationFailed

CONNECT_TIMEOUT_S: Final = 5

# The mark is the comment of the database. It covers the roles, because grants depend on which roles exist.
READ_MARK: Final = """
    SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()
"""
READ_ROLES: Final = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'palaver%' ORDER BY rolname"


def mark_of(scripts: Path, repeatable: Sequence[Path], roles: Iterable[object]) -> str:
    """Return the mark of these revisions, files and roles.

    Args:
        scripts: The Alembic script folder.
        repeatable: SQL files that are executed after the revisions, in order.
        roles: Names of the existing roles, in order.
    """
    digest = hashlib.sha256()
    revisions = sorted(path for path in (scripts / "versions").iterdir() if path.suffix in {".py", ".sql"})
    for path in (*revisions, *repeatable):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr([str(role) for role in roles]).encode())
    return f"palaver {digest.hexdigest()}"


def is_marked(url: str, *, scripts: Path, repeatable: Sequence[Path]) -> bool:
    """Whether a database was last migrated with exactly these files, and has the same roles as then.

    Raises:
        MigrationFailed: The server cannot be reached or refused the query.
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
