"""The client of the direct channel: keeps a stream from the serving leader open.

Decides where to connect (to the serving leader of the latest leadership), when to close a stream and when to reconnect.
Does not know how items are applied. **Items arrive in order and without gaps over any number of reconnects. The buffer
of received items is bounded; if it is full, the client stops reading, which slows the leader down.**
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Final

import httpx
import orjson

from regions.coordination import Leadership
from regions.plain_http import PlainTransport
from regions.position import Position, encode_token
from regions.topology import Topology
from sync.change import SyncError, decode_line
from sync.channel.buffer import BufferedSubscription
from sync.channel.direct import ACK_PATH, CHANGES_PATH, SNAPSHOT_HEADER, LeadershipSource, wait_for_new_leadership
from sync.lag import LagMeter

SILENCE_MAX_S: Final = 5.0
"""The leader sends a line each second. A stream that misses five of them is dead; TCP keepalive also allows a handful
of probes."""

CONNECT_TIMEOUT_S: Final = 3.0
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
"""The client finds a leader that returns within two seconds. The jitter follows AWS's "full jitter"."""

SUCCESSION_S_MAX: Final = 1.0
"""If a stream ends while the record promises the next epoch to a successor, the switchover has most likely ended it. A
reconnect within this time would only make the old leader, which stops, and its successor start walsenders for it."""

LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Parts of transactions are much smaller, so a longer line means a broken stream."""

ACK_INTERVAL_S: Final = 1.0
ACK_TIMEOUT_S: Final = 3.0
"""An acknowledgement releases WAL on the leader. PostgreSQL's own receivers report every 10 s."""

_log = logging.getLogger(__name__)


class StreamFailed(SyncError):
    """A stream could not be opened, or it broke."""


class DirectChannel:
    """Subscribes to the leader's change server. Implements `sync.channel.Channel`.

    Attributes:
        bytes_received: Bytes of all streams, for metrics.
        reconnects: Streams that ended, for metrics.
        snapshots: Streams that were a snapshot, because the changes were no longer available, for metrics.
    """

    def __init__(self, *, topology: Topology, leaders: LeadershipSource, token: str, meter: LagMeter) -> None:
        """Prepare a channel for the topology's own region."""
        self._topology = topology
        self._leaders = leaders
        self._headers = {"authorization": f"Bearer {token}"}
        self._meter = meter
        self.bytes_received = 0
        self.reconnects = 0
        self.snapshots = 0

    @contextlib.asynccontextmanager
    async def subscribe(self, start: Position) -> AsyncGenerator[BufferedSubscription]:
        """Open a subscription to everything after ``start``. It follows the leader until the context ends."""
        subscription = BufferedSubscription(start)
        self._meter.note_restarted()
        timeout = httpx.Timeout(ACK_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=SILENCE_MAX_S)
        async with (
            httpx.AsyncClient(
                headers=self._headers, timeout=timeout, transport=PlainTransport(), trust_env=False
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            tasks = [
                group.create_task(self._follow(client, subscription)),
                group.create_task(self._acknowledge(client, subscription)),
            ]
            try:
                yield subscription
            finally:
                for task in tasks:
                    task.cancel()
                self._meter.note_disconnected("not subscribed")

    async def _follow(self, client: httpx.AsyncClient, subscription: BufferedSubscription) -> None:
        """Keep one stream to the current leader open, until cancelled."""
        backoff_s = BACKOFF_MIN_S
        while True:
            leadership = await self._serving()
            received_before = subscription.received
            try:
                await self._stream_under(leadership, client, subscription)
                trouble = "the leader ended the stream"
                pause_max_s = backoff_s
            except SyncError as error:
                trouble, pause_max_s = str(error), backoff_s
                _log.warning("stream from %s: %s", leadership.leader, trouble)
            self._meter.note_disconnected(trouble)
            self.reconnects += 1
            advanced = subscription.received > received_before
            backoff_s = BACKOFF_MIN_S if advanced else min(2 * backoff_s, BACKOFF_MAX_S)
            await self._back_off(leadership, pause_max_s)

    async def _serving(self) -> Leadership:
        """Wait for a leadership in phase `serving`."""
        leadership = self._leaders.current
        while leadership is None or leadership.phase != "serving":
            state = "no leader is known" if leadership is None else f"epoch {leadership.epoch} is {leadership.phase}"
            self._meter.note_disconnected(state)
            leadership = await self._leaders.next_after(leadership)
        return leadership

    async def _back_off(self, leadership: Leadership, pause_max_s: float) -> None:
        """Back off with jitter. A new epoch, leader or phase ends the wait at once."""
        current = self._leaders.current
        if current is not None and current.succession is not None:
            pause_max_s = max(pause_max_s, SUCCESSION_S_MAX)
        pause_s = pause_max_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await wait_for_new_leadership(self._leaders, leadership)

    async def _stream_under(
        self, leadership: Leadership, client: httpx.AsyncClient, subscription: BufferedSubscription
    ) -> None:
        """Stream until the stream ends or the epoch, leader or phase changes.

        Raises:
            SyncError: The stream broke.
        """
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(self._stream_or_error(leadership, client, subscription))
            another = group.create_task(wait_for_new_leadership(self._leaders, leadership))
            await asyncio.wait([stream, another], return_when=asyncio.FIRST_COMPLETED)
            stream.cancel()
            another.cancel()
        if not stream.cancelled() and (failure := stream.result()) is not None:
            raise failure

    async def _stream_or_error(
        self, leadership: Leadership, client: httpx.AsyncClient, subscription: BufferedSubscription
    ) -> SyncError | None:
        """Stream until the stream ends; return its error, None if it had none.

        The error is returned and not raised, because before Python 3.13 a task that fails in a TaskGroup can replace a
        cancellation of the group that arrives at the same moment. The cancelled caller would then reconnect.
        """
        try:
            await self._stream(leadership, client, subscription)
        except SyncError as error:
            return error
        return None

    async def _stream(
        self, leadership: Leadership, client: httpx.AsyncClient, subscription: BufferedSubscription
    ) -> None:
        address = self._topology.by_name(leadership.leader).changes
        query = {
            "region": self._topology.region,
            "from": encode_token(self._topology.cell, subscription.received),
        }
        try:
            async with client.stream("GET", f"http://{address}{CHANGES_PATH}", params=query) as response:
                if response.status_code != HTTPStatus.OK:
                    raise await _refusal(response)
                lost = response.headers.get(SNAPSHOT_HEADER)
                if lost is None:
                    _log.info("streaming from %s after %s", leadership.leader, query["from"])
                    self._meter.note_connected(leadership.leader)
                else:
                    self.snapshots += 1
                    _log.warning(
                        "changes after %s are gone (%s): taking a snapshot from %s",
                        query["from"], lost, leadership.leader,
                    )  # fmt: skip
                    self._meter.note_snapshot(leadership.leader, now=time.monotonic())
                subscription.acknowledge_url = f"http://{address}{ACK_PATH}"
                await self._read(response, subscription)
        except httpx.TimeoutException as error:
            raise StreamFailed(f"{leadership.leader} was silent for too long") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise StreamFailed(f"{leadership.leader}: {error or type(error).__name__}") from error
        finally:
            subscription.acknowledge_url = None

    async def _read(self, response: httpx.Response, subscription: BufferedSubscription) -> None:
        rest = b""
        async for chunk in response.aiter_raw():
            self.bytes_received += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                raise StreamFailed(f"a line of more than {LINE_BYTES_MAX} bytes")
            for line in lines:
                item = decode_line(line)
                if subscription.is_new(item):
                    self._meter.note_received(item, now=time.monotonic())
                    await subscription.put(item, len(line))

    async def _acknowledge(self, client: httpx.AsyncClient, subscription: BufferedSubscription) -> None:
        """Send the latest acknowledgement, at most once per interval. The next one covers a lost one."""
        while True:
            position = await subscription.next_acknowledgement()
            url = subscription.acknowledge_url
            if url is not None:
                body = orjson.dumps(
                    {
                        "region": self._topology.region,
                        "position": encode_token(self._topology.cell, position),
                    }
                )
                try:
                    await client.post(url, content=body)
                except httpx.HTTPError as error:
                    _log.debug("acknowledgement was not sent: %r", error)
            await asyncio.sleep(ACK_INTERVAL_S)


async def _refusal(response: httpx.Response) -> StreamFailed:
    body = await response.aread()
    try:
        detail = str(orjson.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        detail = "no reason given"
    return StreamFailed(f"refused with {response.status_code}: {detail}")
