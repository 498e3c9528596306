"""A region's half of the direct channel: follows the leader and keeps the stream open.

Decides where to connect (the serving leader of the latest leadership), when to give up on a stream and
when to try again. Refuses to know what happens to the items. **Items come in order and without gaps
over any number of reconnects; what is taken from the network and not yet taken by the consumer is
bounded, and beyond that the leader is slowed down.**
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
"""The source says something each second: five missed words are a dead stream (as in TCP keepalive
practice, a handful of probes)."""

CONNECT_TIMEOUT_S: Final = 3.0
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
"""A leader that comes back is found again within two seconds; with jitter, as AWS's "full jitter"."""

SUCCESSION_S_MAX: Final = 1.0
"""A stream that ends while the next epoch is promised to somebody ended for that one, most likely: to ask again at once
would only have a leader that stops, and what follows it, make processes for it."""

LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""No part of a transaction comes near: a line above it is a broken stream."""

ACK_INTERVAL_S: Final = 1.0
ACK_TIMEOUT_S: Final = 3.0
"""An acknowledgement frees WAL on the leader; PostgreSQL's own receivers report every 10 s."""

_log = logging.getLogger(__name__)


class StreamFailed(SyncError):
    """A stream could not be opened, or broke."""


class DirectChannel:
    """Subscribes to the leader's change server. Implements `sync.channel.Channel`.

    Attributes:
        bytes_received: Of all streams, for metrics.
        reconnects: Streams that ended, for metrics.
        snapshots: Streams that were a snapshot, because the changes were gone, for metrics.
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
        """Open a subscription to everything after ``start``; it follows the leader until it is closed."""
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
        """Keep one stream open to whoever leads, for ever."""
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
        """Wait for a leadership that serves."""
        leadership = self._leaders.current
        while leadership is None or leadership.phase != "serving":
            state = "no leader is known" if leadership is None else f"epoch {leadership.epoch} is {leadership.phase}"
            self._meter.note_disconnected(state)
            leadership = await self._leaders.next_after(leadership)
        return leadership

    async def _back_off(self, leadership: Leadership, pause_max_s: float) -> None:
        """Back off with jitter; another leader ends the wait at once."""
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
        """Stream until it breaks or another leader, epoch or phase is told.

        Raises:
            SyncError: It broke.
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
        """Stream until it breaks, and return how.

        A task that fails inside of a TaskGroup would replace a cancellation of the whole that arrives in the same
        moment (Python before 3.13), and the stream would be opened again by somebody who was told to end.
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
        """Send the latest acknowledgement, at most each interval; the next makes up for a lost one."""
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
