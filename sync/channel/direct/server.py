"""The leader's half of the direct channel: one HTTP response for each subscribed region.

Decides who may subscribe (the bearer token, a region of the topology) and when this region may serve
(while it leads). Refuses to know rows. **A subscriber gets everything after its position or a status
that says why not: 409 this region does not lead, 503 try again. One whose slot no longer reaches back that far
gets a snapshot of the ledger, and subscribes again after it. Nothing that a failover may give up is sent: what is
not on a quorum yet waits, and a subscriber that waits hears that its stream lives. The newest subscription of a
region wins; a subscriber that does not read stops its capture and nothing else.**
"""

import asyncio
import hmac
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from regions.coordination import Leadership
from regions.identity import Epoch, RegionName, slot_name
from regions.position import InvalidPosition, Position, decode_token
from regions.topology import InvalidTopology, Topology
from sync.capture import (
    Capture,
    CaptureCounts,
    SlotLost,
    StreamEnded,
    open_capture,
)
from sync.change import Item, Progress, SyncError, Transaction, encode_line
from sync.channel.direct import ACK_PATH, CHANGES_PATH, SNAPSHOT_HEADER, Leaders, until_another
from sync.high_water import HighWaterMark
from sync.snapshot import open_snapshot

ACK_BYTES_MAX: Final = 1024
"""An acknowledgement is two short texts."""

RETRY_AFTER_S: Final = "1"

BEGINNING_TIMEOUT_S: Final = 5.0
"""A walsender answers our first status within a round trip; one that does not by then is stuck."""

CHUNK_INTERVAL_S: Final = 0.002
BUSY_CHUNK_INTERVAL_S: Final = 0.025
BUSY_ITEMS_PER_S: Final = 300
BUSY_WINDOW_S: Final = 0.5
"""Chunks of one stream are at least this far apart, so that a busy ledger is sent, applied and published in
batches: each transaction alone costs every region a round trip to its view and an fsync. The first transaction after
a pause waits for nothing. PostgreSQL's commit_delay is the same trade. Above 300 transactions a second the
processor is what readers wait for, and larger batches cost it less; a few that come together are not that yet."""

HELD_ITEMS_MAX: Final = 50
"""Of one stream: with more, or with parts of a large transaction, nothing is read before all of it may be sent. So a
stream holds what one reading brings and 50 transactions, each smaller than a part."""

HELD_WORD_S: Final = 1.0
"""How often a subscriber hears that its stream lives while nothing may be sent; it gives up after five seconds."""

_HEADERS: Final = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]

GOODBYE_S_MAX: Final = 1.0
"""For the end of a response; the server closes a connection whose response has none."""

STALLED_S_MAX: Final = 60.0
"""A region applies a part of a snapshot in well under a second; one that stands still must not keep dead rows alive."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Feed:
    """The stream of one region, from the request until its last byte.

    Attributes:
        stop: Set when a later subscription or the end of the process wants it gone.
        ended: Set when its slot is free again.
        older: The subscription it takes over from; its slot is free when that one has ended.
        capture: The open capture, None while it is being opened.
    """

    region: RegionName
    older: "Feed | None"
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    capture: Capture | None = None


class ChangeServer:
    """Serves the change streams of a cell while this region leads it.

    Attributes:
        totals: What ended and running streams have sent, by region.
        one_snapshot: Held while a snapshot is taken.
    """

    def __init__(self, *, topology: Topology, leaders: Leaders, ledger_conninfo: str | None, token: str) -> None:
        """Prepare the server.

        Args:
            topology: Who may subscribe.
            leaders: Who leads.
            ledger_conninfo: Of the own ledger member; None in a region without one.
            token: Shared by the regions of a deployment.
        """
        self._topology = topology
        self._leaders = leaders
        self._conninfo = ledger_conninfo
        self._authorization = f"Bearer {token}".encode()
        self._feeds: dict[RegionName, Feed] = {}
        self._mark: tuple[Epoch, HighWaterMark] | None = None
        self.totals: dict[RegionName, CaptureCounts] = {}
        self.one_snapshot = asyncio.Lock()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route(CHANGES_PATH, self._changes, methods=["GET"]),
                Route(ACK_PATH, self._acknowledge, methods=["POST"]),
            ]
        )

    def close(self) -> None:
        """Ask every stream to end; each does within a moment."""
        for feed in self._feeds.values():
            feed.stop.set()

    @property
    def subscribed(self) -> list[RegionName]:
        """The regions that have a stream now."""
        return sorted(self._feeds)

    def serving_leadership(self) -> Leadership | None:
        """The leadership under which this region may serve, None when it may not."""
        current = self._leaders.current
        if current is None or current.phase != "serving" or current.leader != self._topology.region:
            return None
        return current

    async def _changes(self, request: Request) -> Response:
        if not self._authorized(request):
            return _problem(401, "unauthorized", "The bearer token is missing or wrong.")
        try:
            region = self._topology.by_name(request.query_params.get("region", "")).name
            start = self._parse_position(request.query_params.get("from", ""))
        except (InvalidTopology, InvalidPosition) as error:
            return _problem(400, "invalid-subscription", str(error))
        leadership = self.serving_leadership()
        if leadership is None or self._conninfo is None:
            return _problem(409, "not-leader", f"Region {self._topology.region} does not lead.")
        if start.epoch > leadership.epoch:
            return _problem(409, "not-leader", f"Epoch {leadership.epoch} here is older than {start.epoch}.")
        return ChangeStream(self, region=region, start=start, leadership=leadership, conninfo=self._conninfo)

    async def _acknowledge(self, request: Request) -> Response:
        if not self._authorized(request):
            return _problem(401, "unauthorized", "The bearer token is missing or wrong.")
        try:
            if int(request.headers.get("content-length", ACK_BYTES_MAX + 1)) > ACK_BYTES_MAX:
                return _problem(413, "too-large", f"At most {ACK_BYTES_MAX} bytes, with their length.")
            fields = orjson.loads(await request.body())
            region = self._topology.by_name(str(fields["region"])).name
            position = self._parse_position(str(fields["position"]))
        except (ValueError, KeyError, TypeError, InvalidTopology, InvalidPosition) as error:
            return _problem(400, "invalid-acknowledgement", str(error))
        feed = self._feeds.get(region)
        if feed is None or feed.capture is None:
            return _problem(409, "not-subscribed", f"Region {region} has no stream here.")
        feed.capture.confirm(position)
        return Response(status_code=204)

    def enter(self, region: RegionName) -> Feed:
        """Register a subscription in place of an older one, which is asked to end."""
        older = self._feeds.get(region)
        if older is not None:
            _log.info("a new subscription of %s takes over", region)
            older.stop.set()
        feed = Feed(region=region, older=older)
        self._feeds[region] = feed
        return feed

    def leave(self, feed: Feed) -> None:
        """End a subscription that `enter` began."""
        feed.ended.set()
        feed.older = None
        if self._feeds.get(feed.region) is feed:
            del self._feeds[feed.region]

    def mark_of(self, epoch: Epoch, conninfo: str) -> HighWaterMark:
        """Return the high-water mark of an epoch, the same one for all streams."""
        if self._mark is None or self._mark[0] != epoch:
            self._mark = epoch, HighWaterMark(conninfo)
        return self._mark[1]

    async def until_deposed(self, leadership: Leadership) -> None:
        """Return when ``leadership``, which serves, is no longer the one in force."""
        await until_another(self._leaders, leadership)

    def _authorized(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode("latin-1")
        return hmac.compare_digest(given, self._authorization)

    def _parse_position(self, token: str) -> Position:
        cell, position = decode_token(token)
        if cell != self._topology.cell:
            raise InvalidPosition(f"a position of cell {cell}; this is cell {self._topology.cell}")
        return position


class ChangeStream(Response):
    """The response to a subscription: an ASGI application that ends its capture however it ends."""

    def __init__(
        self,
        server: ChangeServer,
        *,
        region: RegionName,
        start: Position,
        leadership: Leadership,
        conninfo: str,
    ) -> None:
        """Prepare the stream; nothing is opened before it is called."""
        self._server = server
        self._region = region
        self._start = start
        self._sent = start
        self._leadership = leadership
        self._conninfo = conninfo

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Open the capture, stream until one side ends, free the slot."""
        feed = self._server.enter(self._region)
        try:
            if feed.older is not None:
                await feed.older.ended.wait()
            if feed.stop.is_set():
                raise StreamEnded("a newer subscription has taken over")
            try:
                await self._open(feed, receive, send)
            except SlotLost as error:
                _log.warning("stream of %s: %s; it gets a snapshot", self._region, error)
                headers = [*_HEADERS, (SNAPSHOT_HEADER.encode(), str(error).encode("ascii", "replace"))]
                await self._stream(feed, lambda: self._send_snapshot(send), headers, receive, send)
        except (SyncError, TimeoutError) as error:
            reason = str(error) or "the ledger's walsender is silent"
            _log.warning("stream of %s: %s", self._region, reason)
            await _problem(503, "source-unavailable", reason)(scope, receive, send)
        finally:
            self._server.leave(feed)

    async def _open(self, feed: Feed, receive: Receive, send: Send) -> None:
        mark = self._server.mark_of(self._leadership.epoch, self._conninfo)
        async with (
            mark.in_use(),
            open_capture(
                self._conninfo,
                slot=slot_name(self._region),
                start=self._start,
                epoch=self._leadership.epoch,
                counts=self._server.totals.setdefault(self._region, CaptureCounts()),
            ) as capture,
        ):
            feed.capture = capture
            # Before the status is sent, for until then the slot may still turn out to be lost.
            async with asyncio.timeout(BEGINNING_TIMEOUT_S):
                first = await capture.beginning()
            await self._stream(feed, lambda: self._pump(capture, mark, first, send), _HEADERS, receive, send)

    async def _send_snapshot(self, send: Send) -> None:
        """Send everything in place of the changes that are gone; it ends early when it cannot, and is asked for again.

        One at a time: each reads every table, and all regions may want one in the same moment.
        """
        # Others wait, connections are made, commits have to end: meanwhile the subscriber hears that its stream lives.
        word = Progress(position=self._start, sent_at_us=0)
        try:
            async with aclosing(self._snapshot()) as parts:
                while (part := await self._next_part(parts, word, send)) is not None:
                    async with asyncio.timeout(STALLED_S_MAX):
                        await send(_body(part))
        except (SyncError, TimeoutError) as error:
            _log.warning("the snapshot of %s was cut short: %s", self._region, str(error) or "it is not read")

    @staticmethod
    async def _next_part(parts: AsyncGenerator[Item], word: Progress, send: Send) -> Item | None:
        async with _under_way(anext(parts, None)) as working:
            while not await _ends_soon(working):
                await send(_body(word))
        return working.result()

    async def _snapshot(self) -> AsyncGenerator[Item]:
        began = time.monotonic()
        slot, epoch = slot_name(self._region), self._leadership.epoch
        mark = self._server.mark_of(epoch, self._conninfo)
        async with (
            self._server.one_snapshot,
            mark.in_use(),
            open_snapshot(self._conninfo, slot=slot, epoch=epoch, mark=mark) as snapshot,
            aclosing(snapshot.parts()) as parts,
        ):
            async for part in parts:
                yield part
            took_s = time.monotonic() - began
            _log.info("snapshot of %s: %d rows in %.1f s", self._region, snapshot.rows, took_s)

    async def _stream(
        self,
        feed: Feed,
        pump: Callable[[], Coroutine[Any, Any, None]],
        headers: list[tuple[bytes, bytes]],
        receive: Receive,
        send: Send,
    ) -> None:
        """Send until the subscriber, the server or the pump ends it; whoever is first ends the others."""
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(pump()),
                group.create_task(_until_disconnected(receive)),
                group.create_task(_until_set(feed.stop)),
                group.create_task(self._server.until_deposed(self._leadership)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        # A subscriber that does not read would keep the slot until its connection breaks.
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S_MAX):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, capture: Capture, mark: HighWaterMark, first: list[Item], send: Send) -> None:
        """Send what the capture has and may be known; while `send` waits for a slow subscriber, nothing is read."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        items_per_s = 0.0
        try:
            async with aclosing(self._settled(capture, mark, first)) as chunks:
                async for settled in chunks:
                    elapsed_s, sent_at = loop.time() - sent_at, loop.time()
                    body = b"".join([encode_line(item) for item in settled])
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    items_per_s = smoothed(items_per_s, len(settled), elapsed_s)
                    pause_s = BUSY_CHUNK_INTERVAL_S if items_per_s > BUSY_ITEMS_PER_S else CHUNK_INTERVAL_S
                    await asyncio.sleep(sent_at + pause_s - loop.time())
        except SyncError as error:
            _log.warning("stream of %s ended: %s", self._region, error)

    async def _settled(self, capture: Capture, mark: HighWaterMark, first: list[Item]) -> AsyncGenerator[list[Item]]:
        """Yield what is on a quorum, in order, as soon as anything is, and a sign of life while nothing is."""
        items = deque(first)
        while True:
            settled: list[Item] = []
            if _is_held(items[0], mark):
                async with _under_way(_until_settled(items[0], mark)) as waiting:
                    while not await _ends_soon(waiting):
                        # Not fresh: what is held back may be a second old or a day.
                        yield [Progress(position=self._sent, sent_at_us=0)]
                waiting.result()
                settled.append(await self._known(mark, items.popleft()))
            while items and not _is_held(items[0], mark):
                settled.append(await self._known(mark, items.popleft()))
            yield settled
            if not items:
                items.extend(await capture.receive())
            elif len(items) < HELD_ITEMS_MAX and not any(one.partial for one in items if isinstance(one, Transaction)):
                # What is held back has waited for its pause; what came meanwhile may go with it.
                items.extend(capture.received())

    async def _known(self, mark: HighWaterMark, item: Item) -> Item:
        """Return an item that may be sent: a transaction as it is, progress no further than the mark."""
        if isinstance(item, Progress):
            return await self._known_progress(mark, item)
        if not item.partial:
            self._sent = item.position
        return item

    async def _known_progress(self, mark: HighWaterMark, progress: Progress) -> Progress:
        """Return progress no further than the mark. All before it was sent, so it is as fresh as it says."""
        await mark.glance()
        position = progress.position
        settled = Position(position.epoch, min(position.lsn, mark.lsn))
        self._sent = max(self._sent, min(position, settled))
        return Progress(position=self._sent, sent_at_us=progress.sent_at_us)


@asynccontextmanager
async def _under_way(work: Awaitable[_T]) -> AsyncGenerator[asyncio.Future[_T]]:
    """Something that runs beside the block, and not longer."""
    working = asyncio.ensure_future(work)
    try:
        yield working
    finally:
        working.cancel()
        await asyncio.wait((working,))


async def _ends_soon(working: asyncio.Future[_T]) -> bool:
    """Wait for its end, until a sign of life is due."""
    return bool((await asyncio.wait((working,), timeout=HELD_WORD_S))[0])


def _body(item: Item) -> Message:
    return {"type": "http.response.body", "body": encode_line(item), "more_body": True}


def _is_held(item: Item, mark: HighWaterMark) -> bool:
    """Whether an item has to wait for the mark; where a partial transaction ends is not known."""
    return not isinstance(item, Progress) and (item.partial or item.position.lsn > mark.lsn)


async def _until_settled(item: Item, mark: HighWaterMark) -> None:
    if isinstance(item, Transaction) and item.partial:
        # Where it ends is not known. It was decoded, so all of it is flushed here by now.
        await mark.wait_for_all()
    else:
        await mark.wait_for(item.position.lsn)


def smoothed(per_s: float, items: int, elapsed_s: float) -> float:
    """Return an exponential moving average over `BUSY_WINDOW_S`: a rate, after ``items`` more in ``elapsed_s``."""
    kept = math.exp(-elapsed_s / BUSY_WINDOW_S)
    return per_s * kept + (items / BUSY_WINDOW_S if elapsed_s <= 0 else items / elapsed_s * (1 - kept))


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_set(event: asyncio.Event) -> None:
    await event.wait()


def _problem(status: int, slug: str, detail: str) -> Response:
    fields = {
        "type": f"https://palaver.dev/problems/{slug}",
        "title": slug.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
    }
    headers = {"retry-after": RETRY_AFTER_S} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return Response(orjson.dumps(fields), status_code=status, headers=headers, media_type="application/problem+json")
