"""Serves comparisons: the leader's half of Merkle repair.

Decides who may compare (as the change server: the bearer token and a region of the topology) and for how long. A
comparison is a session with one snapshot of the ledger. **All answers of a session are of one position, and a quorum
has this position.** One session is open at a time, because sessions share the rows in memory. It ends by itself if the
region sends nothing for `IDLE_S_MAX`, and if the leadership changes.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import orjson
import psycopg
from starlette.requests import Request
from starlette.responses import Response

from regions.coordination import Leadership
from regions.position import Position
from sync.change import SyncError
from sync.channel.direct.responses import problem
from sync.channel.direct.source import LedgerSource
from sync.exported_snapshot import open_exported_snapshot
from sync.ledger_tree import LedgerTree
from sync.merkle import wire
from sync.merkle.descent import answer_nodes
from sync.merkle.errors import InvalidMessage, NotComparable
from sync.merkle.rows import row_digests
from sync.merkle.tree import PositionedTree
from sync.statements import load_sql

IDLE_S_MAX: Final = 15.0
READ_S_MAX: Final = 60.0
"""The first comparison after a start reads all rows of the ledger."""

WAIT_S_MAX: Final = 10.0
"""How long a region waits for the comparison of another one."""

APPLIED_S_MAX: Final = 10.0
BODY_BYTES_MAX: Final = 128 * 1024
IMAGES_MAX: Final = 4_096
"""Rows that one request may ask for."""

IMAGES_PER_QUERY: Final = 100
IMAGES_BYTES_MAX: Final = 1024 * 1024
"""An answer ends after the query that exceeds this; the client asks for the rest."""


class ComparisonUnavailable(SyncError):
    """A comparison cannot be opened now."""


@dataclass(slots=True, kw_only=True)
class _Session:
    id: str
    region: str
    connection: psycopg.AsyncConnection
    position: Position
    used_at: float
    tree: "asyncio.Future[PositionedTree]"
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class ComparisonCounts:
    """The sessions since the start of the process, for metrics."""

    opened: int = 0
    refused: int = 0
    expired: int = 0


class Comparisons:
    """The sessions of a leader.

    Attributes:
        counts: For metrics.
    """

    def __init__(
        self, *, source: LedgerSource, tree: LedgerTree, wait_until_applied: Callable[[Position], Awaitable[None]]
    ) -> None:
        """Prepare.

        Args:
            source: The own ledger.
            tree: The tree of the own ledger.
            wait_until_applied: Waits until the changes up to a position have been marked in ``tree``.
        """
        self.counts = ComparisonCounts()
        self._source = source
        self._tree = tree
        self._wait_until_applied = wait_until_applied
        self._session: _Session | None = None
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def open_for(self) -> str | None:
        """The region that has a session; None if there is none."""
        return None if self._session is None else self._session.region

    def _release(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._one.release()

    def close(self) -> None:
        """End the session and all work."""
        for task in self._tasks:
            task.cancel()

    async def open(self, region: str, leadership: Leadership, *, scrub: bool) -> Response:
        """Answer a request for a session: its id and its position.

        The position is known before the tree, so that the view can end a batch there.
        """
        if self._session is not None and self._session.region == region:
            # The region has lost this session, or it would not open another one.
            self._session.ended.set()
        opened: asyncio.Future[_Session] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                await self._one.acquire()
        except TimeoutError:
            self.counts.refused += 1
            return problem(429, "comparison-open", "Another region compares now. Try again in a second.")
        task = asyncio.create_task(self._run(region, leadership, opened, scrub=scrub))
        self._tasks.add(task)
        task.add_done_callback(self._release)
        try:
            session = await opened
        except (SyncError, psycopg.Error) as error:
            self.counts.refused += 1
            return problem(503, "comparison-unavailable", " ".join(str(error).split()))
        except asyncio.CancelledError:
            task.cancel()
            raise
        self.counts.opened += 1
        fields = {"id": session.id, "epoch": session.position.epoch, "lsn": session.position.lsn}
        return Response(orjson.dumps(fields), media_type="application/json")

    async def answer(self, request: Request, session_id: str, what: str) -> Response:
        """Answer a request of a session: for the summary, for nodes, for rows or for images."""
        session = self._session
        if session is None or not secrets.compare_digest(session.id, session_id):
            return problem(404, "no-comparison", "There is no such comparison; it may have expired.")
        if int(request.headers.get("content-length", BODY_BYTES_MAX + 1)) > BODY_BYTES_MAX:
            return problem(413, "too-large", f"At most {BODY_BYTES_MAX} bytes, with their length.")
        body = await request.body()
        async with session.busy:
            if self._session is not session:
                # It ended while the body arrived; the rows in memory may be those of another position.
                return problem(404, "no-comparison", "The comparison has ended.")
            session.used_at = asyncio.get_running_loop().time()
            try:
                return await self._answer(session, what, body)
            except (InvalidMessage, NotComparable) as error:
                return problem(400, "invalid-comparison", str(error))
            except (SyncError, psycopg.Error) as error:
                session.ended.set()
                return problem(503, "comparison-unavailable", " ".join(str(error).split()))
            finally:
                session.used_at = asyncio.get_running_loop().time()

    async def _answer(self, session: _Session, what: str, body: bytes) -> Response:
        tree = await asyncio.shield(session.tree)
        match what:
            case "summary":
                return _octets(wire.encode_summary(tree.summary))
            case "nodes":
                return _octets(answer_nodes(tree, wire.decode_nodes_request(body)))
            case "rows":
                return _octets(self._rows(tree, body))
            case "images":
                return Response(await self._images(session, body), media_type="application/json")
            case "existing":
                return Response(await self._existing(session, body), media_type="application/json")
            case _:
                return problem(404, "not-found", "A comparison has a summary, nodes, rows, images and existing rows.")

    def end(self, session_id: str) -> Response:
        """End a session, if it is open."""
        if self._session is not None and secrets.compare_digest(self._session.id, session_id):
            self._session.ended.set()
        return Response(status_code=204)

    def _rows(self, tree: PositionedTree, body: bytes) -> bytes:
        request = wire.decode_rows_request(body)
        if request.position != tree.position or request.depth > tree.tree.depth:
            raise NotComparable(f"rows at {request.position} and depth {request.depth} requested")
        return wire.encode_rows(row_digests(self._tree.rows_of(request.leaves, request.depth)), request)

    async def _images(self, session: _Session, body: bytes) -> bytes:
        """Return ``{"answered": n, "rows": [[table, columns], …]}`` for the first n of the requested key hashes."""
        try:
            wanted = orjson.loads(body)
            hashes = [int(one) for one in wanted]
        except (ValueError, TypeError) as error:
            raise InvalidMessage("expected an array of key hashes") from error
        if len(hashes) > IMAGES_MAX:
            raise InvalidMessage(f"{len(hashes)} rows requested, at most {IMAGES_MAX}")
        rows: list[tuple[str, dict[str, str | None]]] = []
        answered = size = 0
        while answered < len(hashes) and size < IMAGES_BYTES_MAX:
            some = hashes[answered : answered + IMAGES_PER_QUERY]
            found = await self._tree.images(session.connection, some)
            size += sum(len(value) for _, row in found for value in row.values() if value is not None)
            rows += found
            answered += len(some)
        return orjson.dumps({"answered": answered, "rows": rows})

    async def _existing(self, session: _Session, body: bytes) -> bytes:
        """Return how many of the given rows the ledger has, read by key: a phantom is never one of them."""
        try:
            rows = [(str(table), tuple(str(one) for one in key)) for table, *key in orjson.loads(body)]
        except (ValueError, TypeError) as error:
            raise InvalidMessage("expected an array of tables and keys") from error
        if len(rows) > IMAGES_MAX:
            raise InvalidMessage(f"{len(rows)} rows, at most {IMAGES_MAX}")
        if not all(self._tree.is_key(table, key) for table, key in rows):
            raise InvalidMessage("a table or a key that the registry does not have")
        return orjson.dumps(await self._tree.existing(session.connection, rows))

    async def _run(
        self, region: str, leadership: Leadership, opened: "asyncio.Future[_Session]", *, scrub: bool
    ) -> None:
        """Keep a session open until it ends, or the leadership changes."""
        tasks = [
            asyncio.create_task(self._keep(region, leadership, opened, scrub=scrub)),
            asyncio.create_task(self._source.until_replaced(leadership)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(
        self, region: str, leadership: Leadership, opened: "asyncio.Future[_Session]", *, scrub: bool
    ) -> None:
        conninfo = self._source.conninfo
        assert conninfo is not None, "a region without a ledger does not lead"
        loop = asyncio.get_running_loop()
        session: _Session | None = None
        try:
            async with open_exported_snapshot(conninfo) as snapshot:
                session = self._session = _Session(
                    id=secrets.token_hex(16),
                    region=region,
                    connection=snapshot.connection,
                    position=Position(leadership.epoch, snapshot.lsn),
                    used_at=loop.time(),
                    tree=loop.create_future(),
                )
                if not opened.done():
                    opened.set_result(session)
                async with asyncio.timeout(READ_S_MAX):
                    session.tree.set_result(await self._read(session, leadership, scrub=scrub))
                session.used_at = loop.time()
                await self._until_ended(session)
        except TimeoutError:
            self._fail(opened, session, ComparisonUnavailable(f"the ledger's tree took more than {READ_S_MAX:g} s"))
        except (SyncError, psycopg.Error) as error:
            self._fail(opened, session, error)
        finally:
            self._session = None
            self._fail(opened, session, ComparisonUnavailable("the comparison ended"))

    @staticmethod
    def _fail(opened: "asyncio.Future[_Session]", session: _Session | None, error: Exception) -> None:
        waiting = opened if session is None else session.tree
        if not waiting.done():
            waiting.set_exception(error)
            waiting.exception()  # a client that does not ask is no error

    async def _read(self, session: _Session, leadership: Leadership, *, scrub: bool) -> PositionedTree:
        mark = self._source.mark_of(leadership.epoch)
        try:
            async with asyncio.timeout(APPLIED_S_MAX), mark.in_use():
                await mark.wait_for_quorum(session.position.lsn)
                await self._wait_until_applied(session.position)
        except TimeoutError:
            raise ComparisonUnavailable(
                f"a quorum, or the view of the leader's region, did not reach {session.position}"
                f" within {APPLIED_S_MAX:g} s"
            ) from None
        cursor = await session.connection.execute(load_sql("postgres_started"))
        identity = await cursor.fetchone()
        return await self._tree.at(session.connection, session.position, identity=identity, scrub=scrub)

    async def _until_ended(self, session: _Session) -> None:
        """Return when the session was ended, or was not used for too long."""
        loop = asyncio.get_running_loop()
        while (left_s := session.used_at + IDLE_S_MAX - loop.time()) > 0 or session.busy.locked():
            try:
                async with asyncio.timeout(max(left_s, 0.1)):
                    await session.ended.wait()
                    return
            except TimeoutError:
                continue
        self.counts.expired += 1


def _octets(content: bytes) -> Response:
    return Response(content, media_type="application/octet-stream")
