"""A bounded pool of connections to the ledger. It determines whether each write took place, did not, or may have.

Decides when an outcome is unknown (rules 7 and 9 of the failover protocol): after the CALL was sent, a broken
connection, a timeout or a cancelled quorum wait does not show whether the commit took place. The pool never cancels a
CALL: if a COMMIT that waits for its quorum is cancelled, its rows become visible although they may be lost. If
something else cancels a quorum wait, the pool reports the epoch, which must end (rule 7, ADR 0020). Does not know which
procedures are called.

This is not an `asyncpg.Pool`: that resets a connection with one more round trip on every release, cancels statements
that time out, and cannot keep the log listener which detects a cancelled quorum wait.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import asyncpg
from asyncpg import exceptions as pg
from prometheus_client import Counter, Gauge

from regions.identity import Epoch

# How long a request waits for a free connection before it is refused.
ACQUIRE_TIMEOUT_S: Final = 1.0
# Requests that may wait for each connection. Further requests would time out anyway.
WAITERS_PER_CONNECTION: Final = 16
CONNECT_TIMEOUT_S: Final = 1.0
# Connections that stay open without writes, and the interval in seconds at which they are checked.
WARM: Final = 4
WARM_CHECK_INTERVAL_S: Final = 1.0
# A write waits this long for a lock that another transaction holds; after that PostgreSQL rolls it back.
LOCK_TIMEOUT_MS: Final = 2_000
# Added to the HTTP server's 2 s; a stop must take less than 3 s.
STOP_TIMEOUT_S: Final = 0.4

_CONNECTIONS: Final = Gauge("palaver_ledger_pool_connections", "Connections to the ledger", ["state"])
_WAITERS: Final = Gauge("palaver_ledger_pool_waiters", "Requests that wait for a connection")
_FAILURES: Final = Counter("palaver_ledger_failures_total", "Calls without a known result", ["kind"])

_log = logging.getLogger("palaver.write_api.pool")

_BROKEN: Final = (OSError, EOFError, pg.PostgresConnectionError, pg.InterfaceError, pg.InternalClientError)
# An object that a statement names does not exist: the agents have not migrated the ledger yet.
_OLD_SCHEMA: Final = (
    pg.UndefinedTableError,
    pg.UndefinedColumnError,
    pg.UndefinedFunctionError,
    pg.InvalidSchemaNameError,
)
# Raised by the server before the procedure's COMMIT, so the write is known not to have happened.
_REFUSED: Final = (
    pg.ReadOnlySQLTransactionError,
    pg.LockNotAvailableError,
    pg.DeadlockDetectedError,
    pg.SerializationError,
    pg.InsufficientPrivilegeError,
    *_OLD_SCHEMA,
)
# PostgreSQL's own errors that leave it open whether the COMMIT took place (rule 9).
_OUTCOME_UNCLEAR: Final = (
    pg.OperatorInterventionError,
    pg.PostgresConnectionError,
    pg.PostgresSystemError,
    pg.InternalServerError,
    pg.InsufficientResourcesError,
)
# SQLSTATEs of the warnings by which PostgreSQL reports that it ended a quorum wait after the commit: the wait was
# cancelled, or its backend was terminated (`SyncRepWaitForLSN`). asyncpg does not pass an error with the second one to
# listeners. In an immediate stop PostgreSQL sends a warning with it, without a detail, to each connection.
_CANCELLED: Final = "01000"
_ENDED: Final = "57P01"


class LedgerError(Exception):
    """A statement has no result; the subclass shows whether it may have written."""


class LedgerUnavailable(LedgerError):
    """Nothing was written: no connection, a member that takes no writes, or a schema that is too old."""


class LedgerOverloaded(LedgerError):
    """Nothing was written: no connection became free in time, although other writes ended."""


class ClientGone(LedgerError):
    """Nothing was written: the client closed its connection while the request waited for one to the ledger."""


class LedgerStuck(LedgerError):
    """Nothing was written: running statements do not end, or hold the row or key that this one needs."""


class OutcomeUnknown(LedgerError):
    """The call was sent and its result is not known. The client can find out whether it wrote."""


_Result = Sequence[asyncpg.Record] | LedgerError | asyncpg.PostgresError


class _Session:
    """One connection, and whether PostgreSQL warned that the quorum wait of its last call was cancelled."""

    __slots__ = ("connection", "warned")

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.warned = False
        connection.add_log_listener(self._note)

    def _note(self, connection: object, message: object) -> None:
        del connection
        # The class, not the code, is matched: asyncpg passes typed messages with the sqlstate on them.
        state, detail = getattr(message, "sqlstate", None), getattr(message, "detail", None)
        if state == _CANCELLED or (state == _ENDED and detail is not None):
            self.warned = True
            _log.error("the ledger gave up a synchronous wait", extra={"warning": str(message)})


class LedgerPool:
    """A bounded pool; an asynchronous context manager. Works while the ledger is down: every call then fails."""

    def __init__(
        self,
        url: str,
        *,
        size: int,
        write_timeout_s: float,
        quorum_wait_cancelled: Callable[[Epoch], None] = lambda _epoch: None,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            url: The ledger member of the own region.
            size: Maximum number of connections.
            write_timeout_s: After this time the outcome of a call is unknown; the call continues.
            quorum_wait_cancelled: Called with the epoch of a cancelled quorum wait, in the event loop; must not block.
            broken: Called when a broken connection or the ledger ended a call, in the event loop; must not block.
        """
        self._url = url
        self._quorum_wait_cancelled = quorum_wait_cancelled
        self._broken = broken
        self._size = size
        self._write_timeout_s = write_timeout_s
        self._idle: list[_Session] = []
        self._open = 0
        self._connecting = 0
        self._waiters: deque[asyncio.Future[_Session | None]] = deque()
        self._running: set[asyncio.Task[_Result]] = set()
        # When a write ended last, or the first of the statements under way began.
        self._moved_at = 0.0
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        _CONNECTIONS.labels("idle").set_function(lambda: len(self._idle))
        _CONNECTIONS.labels("used").set_function(lambda: self._open - len(self._idle))
        _WAITERS.set_function(lambda: len(self._waiters))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_TIMEOUT_S)
        for session in self._idle:
            session.connection.terminate()
        self._idle.clear()
        for task in self._running:
            # Ending the process ends the connection as well; the ledger's backend continues or rolls back.
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    @property
    def reachable(self) -> bool:
        """Whether a connection is open; used by the readiness probe."""
        return self._open > 0

    async def call(
        self, statement: str, epoch: Epoch, *arguments: object, gone: Callable[[], bool] = lambda: False
    ) -> asyncpg.Record:
        """Run a CALL that commits by itself under an epoch, its first argument, and return its row.

        Args:
            statement: The CALL.
            epoch: Its first argument.
            *arguments: The others.
            gone: Whether the client is gone; asked when the call has its connection. An edge gives up an attempt that
                takes too long and makes another one: under overload the work of the first would be done for nobody.

        Raises:
            LedgerUnavailable: Nothing was written.
            LedgerOverloaded: Nothing was written.
            ClientGone: Nothing was written.
            OutcomeUnknown: It may have been written.
            asyncpg.PostgresError: The statement is wrong, or an argument is; nothing was written.
        """
        rows = await self._shielded(statement, (epoch, *arguments), epoch, gone)
        return rows[0]

    async def fetch(self, statement: str, *arguments: object, under: Epoch | None = None) -> Sequence[asyncpg.Record]:
        """Run a statement outside of procedures; `under` is its epoch when it writes. The same errors as `call`."""
        return await self._shielded(statement, arguments, under)

    async def _shielded(
        self,
        statement: str,
        arguments: Sequence[object],
        epoch: Epoch | None,
        gone: Callable[[], bool] = lambda: False,
    ) -> Sequence[asyncpg.Record]:
        session = await self._acquire()
        if gone():
            self._release(session)
            _FAILURES.labels("client_gone").inc()
            raise ClientGone("the client closed its connection")
        if not self._running:
            self._moved_at = asyncio.get_running_loop().time()
        task = self._group.create_task(self._watched(session, statement, arguments, epoch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.wait((task,), timeout=self._write_timeout_s)
        if not task.done():
            _FAILURES.labels("timeout").inc()
            raise OutcomeUnknown(f"no answer within {self._write_timeout_s} s")
        result = task.result()
        if isinstance(result, BaseException):
            raise result
        return result

    async def _watched(
        self, session: _Session, statement: str, arguments: Sequence[object], epoch: Epoch | None
    ) -> _Result:
        """Run the statement; report a cancelled quorum wait even if the request no longer waits for the result."""
        session.warned = False
        try:
            result = await self._perform(session, statement, arguments)
            # Reads end while the ledger has no quorum, and so do statements that it refuses.
            if epoch is not None and not isinstance(result, BaseException):
                self._moved_at = asyncio.get_running_loop().time()
            return result
        finally:
            if session.warned and epoch is not None:
                self._quorum_wait_cancelled(epoch)

    async def _perform(self, session: _Session, statement: str, arguments: Sequence[object]) -> _Result:
        """Run the statement; errors are returned, so that the task group does not stop for them."""
        try:
            rows = await session.connection.fetch(statement, *arguments)
        except _REFUSED as error:
            self._release(session)
            return _refusal(error)
        except pg.PostgresError as error:
            if isinstance(error, _OUTCOME_UNCLEAR):
                # A shutdown, a cancel, a crash or a broken connection can hit after the commit record was written.
                return self._lost(session, error)
            self._release(session)
            return error
        except _BROKEN as error:
            return self._lost(session, error)
        except BaseException:
            self._discard(session)
            raise
        if session.warned:
            self._discard(session)
            _FAILURES.labels("sync_wait_cancelled").inc()
            return OutcomeUnknown("the ledger gave up waiting for its quorum")
        self._release(session)
        return rows

    async def keep_idle_connections(self) -> None:
        """Keep some connections open at all times, so that the first writes of an epoch wait for none."""
        while True:
            self._drop_closed()
            while self._open < min(WARM, self._size):
                self._open += 1
                try:
                    session = await self._connect()
                except LedgerUnavailable as error:
                    _log.debug("the ledger takes no connection ahead: %s", error)
                    break
                self._pass_on(session)
            await asyncio.sleep(WARM_CHECK_INTERVAL_S)

    def _drop_closed(self) -> None:
        left = [session for session in self._idle if not session.connection.is_closed()]
        self._open -= len(self._idle) - len(left)
        self._idle = left

    async def _acquire(self) -> _Session:
        while self._idle:
            session = self._idle.pop()
            if not session.connection.is_closed():
                return session
            self._open -= 1
        if self._open < self._size and not self._connecting:
            self._open += 1
            return await self._connect()
        session = await self._wait_for_free()
        if session is None or session.connection.is_closed():
            return await self._connect()
        return session

    async def _wait_for_free(self) -> _Session | None:
        """Wait in the queue, first in first out; return a connection, or None for permission to open one."""
        if len(self._waiters) >= self._size * WAITERS_PER_CONNECTION:
            raise self._refused("too many requests wait for the ledger")
        turn: asyncio.Future[_Session | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S):
                return await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.done() and not turn.cancelled():
                self._pass_on(turn.result())  # it was assigned at the moment of the timeout
            if isinstance(error, TimeoutError):
                raise self._refused(f"no connection became free within {ACQUIRE_TIMEOUT_S} s") from None
            raise
        finally:
            if turn in self._waiters:
                self._waiters.remove(turn)

    def _refused(self, reason: str) -> LedgerError:
        """Return the error of a request that got no connection: while no write ends, the ledger hangs."""
        if asyncio.get_running_loop().time() - self._moved_at >= ACQUIRE_TIMEOUT_S:
            return LedgerStuck(f"{reason}, and no write ended")
        return LedgerOverloaded(reason)

    async def _connect(self) -> _Session:
        """Make a connection on a place that is already counted as open.

        One is made at a time where it can be: many at once take the processors from the writes that are under way.
        """
        self._connecting += 1
        try:
            connection = await asyncpg.connect(
                self._url,
                timeout=CONNECT_TIMEOUT_S,
                server_settings={
                    "application_name": "palaver-write-api",
                    "lock_timeout": str(LOCK_TIMEOUT_MS),
                    "TimeZone": "UTC",
                },
            )
        except (*_BROKEN, TimeoutError, pg.PostgresError) as error:
            self._pass_on(None)
            _FAILURES.labels("connect").inc()
            raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self._pass_on(None)
            raise
        finally:
            self._connecting -= 1
        if self._waiters and self._open < self._size:
            self._open += 1
            self._pass_on(None)
        return _Session(connection)

    def _release(self, session: _Session) -> None:
        self._pass_on(None if session.connection.is_closed() else session)

    def _lost(self, session: _Session, error: Exception) -> OutcomeUnknown:
        self._broken()
        self._discard(session)
        _FAILURES.labels("broken").inc()
        return OutcomeUnknown(f"{type(error).__name__}: {error}")

    def _discard(self, session: _Session) -> None:
        session.connection.terminate()
        self._pass_on(None)

    def _pass_on(self, session: _Session | None) -> None:
        """Give a connection, or the permission to open one, to the first waiting request."""
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(session)
                return
        if session is None:
            self._open -= 1
        else:
            self._idle.append(session)


def _refusal(error: Exception) -> LedgerError:
    if isinstance(error, pg.LockNotAvailableError | pg.DeadlockDetectedError | pg.SerializationError):
        return LedgerStuck(f"{type(error).__name__}: {error}")
    if isinstance(error, _OLD_SCHEMA):
        return LedgerUnavailable(f"the ledger's schema is older than this process: {type(error).__name__}: {error}")
    return LedgerUnavailable(f"{type(error).__name__}: {error}")
