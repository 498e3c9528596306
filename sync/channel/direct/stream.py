"""Streams changes to one region, as the ASGI response to its subscription.

Decides when a stream ends, when a snapshot replaces it, and that the slot is free again afterwards. Does not decide
which region may subscribe (`server`) or which items may be sent (`quorum_gate`). **A subscriber gets everything after
its position, or a snapshot if its slot no longer has that, or 503 with the reason. A subscriber that does not read
blocks its own capture only.**
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Final

from starlette.responses import Response

from regions.coordination import Leadership
from regions.identity import RegionName, slot_name
from regions.position import Position
from sync.capture import Capture, SlotLost, StreamEnded, open_capture
from sync.change import Item, SyncError
from sync.channel.direct import SNAPSHOT_HEADER
from sync.channel.direct.pacing import ChunkPacer
from sync.channel.direct.quorum_gate import QuorumGate
from sync.channel.direct.responses import STREAM_HEADERS, Message, Receive, Send, body_of, problem
from sync.channel.direct.snapshot_stream import send_snapshot
from sync.channel.direct.source import LedgerSource
from sync.channel.direct.subscriptions import ActiveStream, Subscriptions
from sync.high_water import HighWaterMark

FIRST_ITEMS_S_MAX: Final = 5.0
"""A walsender answers the first status message within a round trip; one that takes longer is stuck."""

END_OF_RESPONSE_S_MAX: Final = 1.0
"""For sending the end of a response; the server closes the connection of a response that has no end."""

_log = logging.getLogger(__name__)


class ChangeStream(Response):
    """The stream of one subscription."""

    def __init__(
        self,
        source: LedgerSource,
        subscriptions: Subscriptions,
        *,
        region: RegionName,
        start: Position,
        leadership: Leadership,
    ) -> None:
        """Prepare the stream; it opens nothing before it is called.

        Args:
            source: The ledger, which is there.
            subscriptions: Where the stream registers.
            region: The subscriber.
            start: The position of the subscriber.
            leadership: Under which this region serves.
        """
        self._source = source
        self._subscriptions = subscriptions
        self._region = region
        self._start = start
        self._leadership = leadership

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Open the capture, stream until one side ends, free the slot."""
        stream = self._subscriptions.enter(self._region)
        try:
            if stream.older is not None:
                await stream.older.ended.wait()
            if stream.stop.is_set():
                raise StreamEnded("a newer subscription has taken over")
            try:
                await self._send_changes(stream, receive, send)
            except SlotLost as error:
                _log.warning("stream of %s: %s; it gets a snapshot", self._region, error)
                headers = [*STREAM_HEADERS, (SNAPSHOT_HEADER.encode(), str(error).encode("ascii", "replace"))]
                await self._respond(stream, lambda: self._send_snapshot(send), headers, receive, send)
        except (SyncError, TimeoutError) as error:
            reason = str(error) or "the ledger's walsender is silent"
            _log.warning("stream of %s: %s", self._region, reason)
            await problem(503, "source-unavailable", reason)(scope, receive, send)
        finally:
            self._subscriptions.leave(stream)

    async def _send_changes(self, stream: ActiveStream, receive: Receive, send: Send) -> None:
        assert self._source.conninfo is not None, "a region without a ledger serves no stream"
        mark = self._source.mark_of(self._leadership.epoch)
        async with (
            mark.in_use(),
            open_capture(
                self._source.conninfo,
                slot=slot_name(self._region),
                start=self._start,
                epoch=self._leadership.epoch,
                counts=self._source.counts_of(self._region),
            ) as capture,
        ):
            stream.capture = capture
            # Before the status is sent: until then the slot may turn out to be lost.
            async with asyncio.timeout(FIRST_ITEMS_S_MAX):
                first = await capture.receive_first()
            await self._respond(stream, lambda: self._pump(capture, mark, first, send), STREAM_HEADERS, receive, send)

    async def _send_snapshot(self, send: Send) -> None:
        await send_snapshot(self._source, send, region=self._region, start=self._start, epoch=self._leadership.epoch)

    async def _respond(
        self,
        stream: ActiveStream,
        pump: Callable[[], Coroutine[Any, Any, None]],
        headers: list[tuple[bytes, bytes]],
        receive: Receive,
        send: Send,
    ) -> None:
        """Send until the pump ends, the subscriber disconnects, the stream is stopped or the leadership changes."""
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(pump()),
                group.create_task(_until_disconnected(receive)),
                group.create_task(_until_set(stream.stop)),
                group.create_task(self._source.until_replaced(self._leadership)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        # A subscriber that does not read would keep the slot until its connection breaks.
        with suppress(TimeoutError):
            async with asyncio.timeout(END_OF_RESPONSE_S_MAX):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, capture: Capture, mark: HighWaterMark, first: list[Item], send: Send) -> None:
        """Send the items that pass the quorum gate. While `send` waits for a slow subscriber, nothing is read."""
        pacer = ChunkPacer()
        gate = QuorumGate(capture, mark, start=self._start)
        try:
            async with aclosing(gate.passed(first)) as chunks:
                async for items in chunks:
                    pacer.begin_chunk()
                    await send(body_of(items))
                    await pacer.pause_after(len(items))
        except SyncError as error:
            _log.warning("stream of %s ended: %s", self._region, error)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_set(event: asyncio.Event) -> None:
    await event.wait()
