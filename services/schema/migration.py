"""Migrates one database to the schema of this version: Alembic revisions, then procedures and grants.

Decides that migrations run in the process that owns the database, one at a time (an advisory lock). Procedures and
functions are not part of revisions: they hold no data, so they are replaced whenever their files change. A run that has
nothing to do writes nothing. Each new leader of the ledger makes such a run, and pruning of dead catalog rows would
invalidate the synchronised logical slots on its standbys.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from services.schema.failure import MigrationFailed
from services.schema.mark import CONNECT_TIMEOUT_S, READ_MARK, READ_ROLES, mark_of

# One lock for all of Palaver's migrations of a database. The number is arbitrary.
_ADVISORY_LOCK: Final = 0x70616C61766572
# A migration waits this long for another migration, or for a table that a request has locked, before it fails.
LOCK_TIMEOUT_MS: Final = 30_000

_WRITE_MARK: Final = "SELECT format('COMMENT ON DATABASE %I IS %L', current_database(), CAST(:mark AS text))"


def migrate_database(url: str, *, scripts: Path, repeatable: Sequence[Path]) -> None:
    """Upgrade to the newest revision, then run the repeatable files if they or the roles changed. Idempotent.

    Args:
        url: `postgresql://…` of a role that owns the schema.
        scripts: The Alembic script folder.
        repeatable: SQL files (procedures, then grants), executed in order unless the last run executed the same files.

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
    """Run a file of SQL statements without parameters, so that no character in it needs escaping."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(path.read_text("utf-8"))
    finally:
        cursor.close()


def _migrate_locked(connection: Connection, scripts: Path, repeatable: Sequence[Path]) -> None:
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _ADVISORY_LOCK})
    connection.commit()
    try:
        config = Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        config.set_main_option("path_separator", "newline")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        wanted = mark_of(scripts, repeatable, connection.scalars(text(READ_ROLES)).all())
        if connection.scalar(text(READ_MARK)) != wanted:
            for path in repeatable:
                execute_script(connection, path)
            connection.exec_driver_sql(str(connection.scalar(text(_WRITE_MARK), {"mark": wanted})))
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        # The lock belongs to the session, so the server also releases it when the connection is lost.
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _ADVISORY_LOCK})
        connection.commit()
