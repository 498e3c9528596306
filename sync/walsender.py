"""Opens a change stream on the ledger: connects, checks the slot, sends START_REPLICATION.

Decides at which LSN a stream starts, when a slot counts as lost, and how a slot is taken over from a walsender whose
connection is gone. Does not know the content of the stream. **A stream starts at or before the position that the
consumer needs, or one of the errors below has the reason why it does not start.**
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final, LiteralString, cast

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from regions.identity import Epoch
from regions.position import ZERO, Position, format_lsn, parse_lsn
from sync.change import SyncError
from sync.statements import load_sql

CONNECT_TIMEOUT_S: Final = 3
TAKEOVER_ATTEMPTS_MAX: Final = 20
TAKEOVER_PAUSE_S: Final = 0.1
TAKEOVER_POLITE_ATTEMPTS: Final = 5
"""If another walsender holds the slot, this many attempts wait for it (half a second); each later one terminates it.
After all attempts (two seconds) the server answers 503 to the subscriber."""

_SESSION_OPTIONS: Final = "-c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=1"

_log = logging.getLogger(__name__)


class CaptureError(SyncError):
    """The stream could not be opened, or it ended."""


class SlotLost(CaptureError):
    """The slot lacks changes after the consumer's position; the consumer needs a snapshot."""


class SlotBusy(CaptureError):
    """Another walsender holds the slot, and did not release it in time."""


class SourceUnavailable(CaptureError):
    """The ledger does not answer, or is not the primary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFence:
    """The first fence row of the ledger, with which the stream of a consumer with nothing begins.

    Attributes:
        epoch: The epoch of the row.
        flushed_lsn: The flushed LSN of the ledger when the row was read; the row lies before it.
    """

    epoch: Epoch
    flushed_lsn: int


async def connect(conninfo: str, *, replication: bool = True) -> psycopg.AsyncConnection:
    """Connect to the ledger, as a walsender unless ``replication`` is off.

    Raises:
        SourceUnavailable: The ledger does not answer, or rejects the connection.
    """
    options: dict[str, str | int] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "options": _SESSION_OPTIONS,
        "client_encoding": "UTF8",
        "application_name": "palaver-capture",
        "keepalives_idle": 2,
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
    if replication:
        options["replication"] = "database"
    try:
        return await psycopg.AsyncConnection.connect(
            make_conninfo(conninfo, **options), autocommit=True, prepare_threshold=None
        )
    except psycopg.OperationalError as error:
        raise SourceUnavailable(one_line(error)) from error


async def read_first_fence(conninfo: str, start: Position) -> FirstFence | None:
    """Read the first fence row if the consumer has nothing (``start`` is `ZERO`); otherwise return None."""
    if start != ZERO:
        return None
    connection = await connect(conninfo, replication=False)
    async with connection:
        cursor = await connection.execute(load_sql("first_fence"))
        row = await cursor.fetchone()
    if row is None or row[0] is None:
        raise SourceUnavailable("the ledger has no fence row yet")
    return FirstFence(epoch=int(row[0]), flushed_lsn=parse_lsn(row[1]))


async def start_replication(connection: psycopg.AsyncConnection, *, slot: str, start: Position, epoch: Epoch) -> None:
    """Start the stream of ``slot``. Afterwards the connection is in COPY BOTH mode.

    Raises:
        SlotLost: The slot is missing, invalidated, or past ``start``.
        SlotBusy: Another walsender holds the slot and could not be terminated.
        SourceUnavailable: The ledger is not the primary, or rejects the command.
    """
    from_lsn = start.lsn if start.epoch == epoch else 0
    command = sql.SQL(
        "START_REPLICATION SLOT {slot} LOGICAL {lsn} (proto_version '1', publication_names 'palaver', messages 'true')"
    ).format(slot=sql.Identifier(slot), lsn=sql.SQL(cast("LiteralString", format_lsn(from_lsn))))
    for attempt in range(TAKEOVER_ATTEMPTS_MAX):
        holder_pid = await _check_slot(connection, slot=slot, start=start)
        if holder_pid is None:
            result = await execute_command(connection, command.as_bytes(None))
            if result.status == pq.ExecStatus.COPY_BOTH:
                return
            state = result.error_field(pq.DiagnosticField.SQLSTATE)
            if state != b"55006":
                raise SourceUnavailable(result.get_error_message().strip())
        elif attempt >= TAKEOVER_POLITE_ATTEMPTS:
            _log.warning("terminating walsender %s, which holds slot %s", holder_pid, slot)
            await connection.execute(sql.SQL(load_sql("end_backend")).format(pid=holder_pid))
        await asyncio.sleep(TAKEOVER_PAUSE_S)
    raise SlotBusy(f"slot {slot} is held by another walsender")


async def _check_slot(connection: psycopg.AsyncConnection, *, slot: str, start: Position) -> int | None:
    """Return the pid of the walsender that holds the slot; None if the slot is free."""
    cursor = await connection.execute(load_sql("logical_slots"))
    rows = {row[0]: row[1:] for row in await cursor.fetchall()}
    await cursor.close()
    if slot not in rows:
        raise SlotLost(f"slot {slot} does not exist")
    active_pid, confirmed, wal_status, in_recovery = rows[slot]
    if in_recovery:
        raise SourceUnavailable("the ledger member is not the primary")
    if wal_status == "lost" or confirmed is None:
        raise SlotLost(f"slot {slot} was invalidated")
    if start != ZERO and parse_lsn(confirmed) > start.lsn:
        raise SlotLost(f"slot {slot} is at {confirmed}, past {format_lsn(start.lsn)}")
    return active_pid


async def execute_command(connection: psycopg.AsyncConnection, command: bytes) -> pq.abc.PGresult:
    """Run a replication command without blocking the event loop, and leave the connection in COPY mode."""
    pgconn = connection.pgconn
    pgconn.send_query(command)
    pgconn.flush()
    while pgconn.is_busy():
        await wait_readable(pgconn)
        pgconn.consume_input()
    result = pgconn.get_result()
    assert result is not None
    if result.status != pq.ExecStatus.COPY_BOTH:
        while pgconn.get_result() is not None:
            pass
    return result


async def wait_readable(pgconn: pq.abc.PGconn) -> None:
    """Wait until the socket of the connection is readable."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    descriptor = pgconn.socket
    loop.add_reader(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def one_line(error: Exception) -> str:
    """Return libpq's message without its line breaks."""
    return " ".join(str(error).split())
