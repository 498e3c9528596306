"""Brings one database to the schema of this version: Alembic revisions, then procedures and grants.

Decides that migrations run in the process that owns the database, one at a time (an advisory lock), and that
procedures and functions are replaced whenever their text is another instead of living in revisions: they hold no data,
so the newest text is always the right one. A run that has nothing to do writes nothing: each new leader of the ledger
makes one, and dead rows of a catalog, pruned soon after, would invalidate the copies of the slots on its standbys.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from services.schema.failure import MigrationFailed

# One lock for all of Palaver's migrations of a database; the number has no meaning beyond being ours.
_ADVISORY_LOCK: Final = 0x70616C61766572
# A migration waits this long for another one, or for a table a request holds, before it gives up.
LOCK_TIMEOUT_MS: Final = 30_000
CONNECT_TIMEOUT_S: Final = 5

# The mark of what was executed last is the comment of the database. Grants depend on which roles there are, and objects
# on the revision, so both are part of it.
_READ_MARK: Final = """
    SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()
"""
_WRITE_MARK: Final = "SELECT format('COMMENT ON DATABASE %I IS %L', current_database(), CAST(:mark AS text))"
_ROLES: Final = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'palaver%' ORDER BY rolname"


def migrate_database(url: str, *, scripts: Path, repeatable: Sequence[Path]) -> None:
    """Upgrade to the newest revision, then run the repeatable files if they or the roles changed. Idempotent.

    Args:
        url: `postgresql://…` of a role that owns the schema.
        scripts: The Alembic script folder.
        repeatable: SQL files executed in order (procedures, then grants) unless just these were executed last.

    Raises:
        MigrationFailed: The server cannot be reached or refused a statement.
    """
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=NullPool,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "palaver-migrate",
            "options": f"-c lock_timeout={LOCK_TIMEOUT_MS}",
        },
    )
    try:
        with engine.connect() as connection:
            _migrate_locked(connection, scripts, repeatable)
    except DBAPIError as error:
        raise MigrationFailed(str(error.orig).strip()) from error
    finally:
        engine.dispose()


def execute_script(connection: Connection, path: Path) -> None:
    """Run a file of SQL statements as it stands: no parameters, so no character in it is special."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(path.read_text("utf-8"))
    finally:
        cursor.close()


def _mark_of(connection: Connection, repeatable: Sequence[Path]) -> str:
    """Return what stands for these files, these roles and this revision."""
    digest = hashlib.sha256()
    for path in repeatable:
        digest.update(path.read_bytes() + b"\0")
    revision = MigrationContext.configure(connection).get_current_revision()
    roles = connection.scalars(text(_ROLES)).all()
    digest.update(repr((revision, roles)).encode())
    return f"palaver {digest.hexdigest()}"


def _migrate_locked(connection: Connection, scripts: Path, repeatable: Sequence[Path]) -> None:
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _ADVISORY_LOCK})
    connection.commit()
    try:
        config = Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        config.set_main_option("path_separator", "newline")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        wanted = _mark_of(connection, repeatable)
        if connection.scalar(text(_READ_MARK)) != wanted:
            for path in repeatable:
                execute_script(connection, path)
            connection.exec_driver_sql(str(connection.scalar(text(_WRITE_MARK), {"mark": wanted})))
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        # The lock belongs to the session, so a lost connection frees it as well.
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _ADVISORY_LOCK})
        connection.commit()
