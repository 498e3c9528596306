"""Capture: the change stream of one region, read from its logical slot on the leader's ledger.

Decides how the stream is opened, when it is read and what is confirmed to the slot. Refuses to know
who leads and who listens. **Everything that committed after `start` comes out once, in commit order,
or `SlotLost` says that it cannot; nothing is confirmed to the slot before the consumer said so; a
consumer that does not take stops the reading, so memory is bounded.**

Where reading starts: under the epoch of the consumer's position the LSN means the same history, so the
stream starts there. Under another epoch it may not (see DESIGN.md), so the stream starts at what the
slot has confirmed, and the consumer drops what it has.

Source: PostgreSQL 18, "Streaming Replication Protocol" and "Logical Streaming Replication Parameters".
"""

import asyncio
import logging
import struct
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import psycopg

from regions.identity import Epoch
from regions.position import Position
from sync.assembly import Assembler
from sync.change import Item, Progress, Transaction
from sync.pgoutput import POSTGRES_EPOCH_US, MalformedMessage
from sync.walsender import (
    CaptureError,
    FirstFence,
    SlotLost,
    connect,
    one_line,
    read_first_fence,
    start_replication,
    wait_readable,
)

RECEIVE_ITEMS_MAX: Final = 500
RECEIVE_BYTES_MAX: Final = 1024 * 1024
"""What one `receive` returns at most; Debezium's max.batch.size is 2,048 events."""

FEEDBACK_INTERVAL_S: Final = 1.0
"""A status each second asks for a keepalive, so that silence longer than a few seconds means a dead
stream; PostgreSQL's wal_receiver_status_interval is 10 s, its wal_sender_timeout 60 s."""

PROGRESS_INTERVAL_US: Final = 500_000
"""Progress that repeats a position is passed on at most this often."""

_XLOG_DATA: Final = struct.Struct("!xQQq")
_KEEPALIVE: Final = struct.Struct("!xQqB")
_STATUS: Final = struct.Struct("!cQQQqB")

_log = logging.getLogger(__name__)


class StreamEnded(CaptureError):
    """The ledger ended the stream."""


@dataclass(slots=True, kw_only=True)
class CaptureCounts:
    """What a capture has done, for metrics."""

    transactions: int = 0
    bytes_read: int = 0


@asynccontextmanager
async def open_capture(
    conninfo: str, *, slot: str, start: Position, epoch: Epoch, counts: CaptureCounts | None = None
) -> AsyncGenerator["Capture"]:
    """Open the stream of ``slot`` after ``start``; the slot is free again when the context ends.

    Args:
        conninfo: libpq conninfo of the ledger's primary, a role with REPLICATION.
        slot: Name of a logical slot that uses pgoutput.
        start: Checkpoint of the consumer; `ZERO` when it has nothing.
        epoch: Under which the ledger is led now.
        counts: Where to count, when they go on over several streams.

    Raises:
        SlotLost: The slot is missing, invalidated, or past ``start``.
        SlotBusy: Another walsender holds it.
        SourceUnavailable: No connection, or no primary.
    """
    connection = await connect(conninfo)
    try:
        await start_replication(connection, slot=slot, start=start, epoch=epoch)
        first_fence = await read_first_fence(conninfo, start)
        capture = Capture(connection, start=start, epoch=epoch, first_fence=first_fence, counts=counts)
        capture.start_feedback()
        try:
            yield capture
        finally:
            capture.stop_feedback()
    except psycopg.Error as error:
        raise StreamEnded(one_line(error)) from error
    finally:
        await connection.close()


class Capture:
    """An open stream. Call `receive` from one task; `confirm` from any."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection,
        *,
        start: Position,
        epoch: Epoch,
        first_fence: FirstFence | None,
        counts: CaptureCounts | None,
    ) -> None:
        """Wrap a connection in COPY BOTH mode.

        Args:
            connection: On which the replication has been started.
            start: What the consumer has.
            epoch: Under which the ledger is led.
            first_fence: What the stream must begin with when the consumer has nothing.
            counts: Where to count.
        """
        self.counts = CaptureCounts() if counts is None else counts
        self._pgconn = connection.pgconn
        self._assembler = Assembler(epoch=start.epoch)
        self._epoch = epoch
        self._first_fence = first_fence
        self._position = start
        self._confirmed_lsn = 0
        self._progress_sent_us = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def position(self) -> Position:
        """The latest position that `receive` has returned."""
        return self._position

    def start_feedback(self) -> None:
        """Start the regular feedback."""
        self._pgconn.nonblocking = 1
        self._tick()

    def stop_feedback(self) -> None:
        """Stop the regular feedback."""
        if self._timer is not None:
            self._timer.cancel()

    async def receive_first(self) -> list[Item]:
        """Return the first items, once it is sure that the stream begins where the consumer needs it to.

        Raises:
            SlotLost: It does not.
            StreamEnded: By the ledger.
            MalformedMessage: What came is not understood.
        """
        items = await self.receive()
        while self._first_fence is not None:
            items += await self.receive()
        return items

    async def receive(self) -> list[Item]:
        """Wait for something and return what is there, bounded, in order, at least one item.

        Raises:
            StreamEnded: By the ledger.
            SlotLost: Only before `receive_first` has returned.
            MalformedMessage: What came is not understood.
        """
        while True:
            items = self._drain()
            if items:
                return items
            await wait_readable(self._pgconn)
            self._read_socket()

    def receive_nowait(self) -> list[Item]:
        """Return what is there without waiting, bounded, in order, perhaps nothing.

        Raises:
            StreamEnded: By the ledger.
            MalformedMessage: What came is not understood.
        """
        self._read_socket()
        return self._drain()

    def confirm(self, position: Position) -> None:
        """Tell the slot that the consumer has everything up to ``position`` on its disk.

        A position of an earlier epoch is ignored, for its LSN may name another history, and so is one that
        was not sent. The consumer's next one will do.
        """
        if position.epoch == self._epoch and position <= self._position:
            self._confirmed_lsn = max(self._confirmed_lsn, position.lsn)
            self._send_status(ask_for_reply=False)

    def _read_socket(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            raise StreamEnded(one_line(error)) from error

    def _drain(self) -> list[Item]:
        """Take what libpq has, up to the bounds."""
        items: list[Item] = []
        bytes_before = self.counts.bytes_read
        while len(items) < RECEIVE_ITEMS_MAX and self.counts.bytes_read - bytes_before < RECEIVE_BYTES_MAX:
            data = self._next_message()
            if data is None:
                break
            self.counts.bytes_read += len(data)
            item = self._decode(data)
            if item is None:
                continue
            if isinstance(item, Progress) and items and isinstance(items[-1], Progress):
                items.pop()
            items.append(item)
        return items

    def _next_message(self) -> bytes | None:
        try:
            size, data = self._pgconn.get_copy_data(1)
        except psycopg.Error as error:
            raise StreamEnded(one_line(error)) from error
        if size > 0:
            return bytes(data)
        if size == 0:
            return None
        result = self._pgconn.get_result()
        reason = "" if result is None else result.get_error_message()
        raise StreamEnded(reason.strip() or "the ledger ended the stream")

    def _decode(self, data: bytes) -> Item | None:
        try:
            match data[:1]:
                case b"w":
                    return self._decode_data(data[_XLOG_DATA.size :])
                case b"k":
                    return self._decode_keepalive(*_KEEPALIVE.unpack(data))
                case _:
                    raise MalformedMessage(f"stream message of kind {data[:1]!r}")
        except struct.error as error:
            raise MalformedMessage(f"stream message {data[:1]!r}: {error}") from error

    def _decode_data(self, payload: bytes) -> Transaction | None:
        transaction = self._assembler.feed(payload)
        if transaction is None:
            return None
        self._check_first_fence()
        if not transaction.partial:
            self.counts.transactions += 1
            self._position = max(self._position, transaction.position)
        return transaction

    def _check_first_fence(self) -> None:
        """A consumer that has nothing needs the stream from the ledger's first fence row on."""
        if self._first_fence is not None:
            found = self._assembler.first_fence_epoch
            if found != self._first_fence.epoch:
                raise SlotLost(f"stream begins at epoch {found}, the ledger at {self._first_fence.epoch}")
            self._first_fence = None

    def _decode_keepalive(self, wal_end: int, sent_at_us: int, reply_requested: int) -> Progress | None:
        if reply_requested:
            self._send_status(ask_for_reply=False)
        if not self._assembler.between_transactions:
            return None
        if self._first_fence is not None and wal_end >= self._first_fence.flushed_lsn:
            raise SlotLost("the slot no longer has the ledger's first fence row")
        sent_at_us += POSTGRES_EPOCH_US
        caught_up = self._assembler.epoch == self._epoch
        if caught_up and wal_end > self._position.lsn:
            self._position = Position(self._epoch, wal_end)
        elif sent_at_us - self._progress_sent_us < PROGRESS_INTERVAL_US:
            return None
        self._progress_sent_us = sent_at_us
        # Before the fence row of the serving epoch the consumer has seen nothing of it: it hears that the
        # stream lives, and not that it is fresh.
        return Progress(position=self._position, sent_at_us=sent_at_us if caught_up else 0)

    def _tick(self) -> None:
        self._send_status(ask_for_reply=True)
        self._timer = self._loop.call_later(FEEDBACK_INTERVAL_S, self._tick)

    def _send_status(self, *, ask_for_reply: bool) -> None:
        """Report what is confirmed as written, flushed and applied alike.

        The written position is deliberately not what was received: a walsender tells an idle stream's
        progress at once only while the client seems to lag.
        """
        lsn = self._confirmed_lsn
        now_us = time.time_ns() // 1000 - POSTGRES_EPOCH_US
        try:
            self._pgconn.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, now_us, ask_for_reply))
            self._pgconn.flush()
        except psycopg.Error as error:
            # The reading side meets the same broken connection and ends the stream with its reason.
            _log.debug("feedback was not sent: %s", one_line(error))
