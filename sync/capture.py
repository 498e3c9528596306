"""Reads the changes of one region from its logical slot on the leader's ledger.

Decides how the stream is opened, when it is read, and which position is confirmed to the slot. Does not know which
region leads and where the changes go. **Capture returns every transaction that committed after `start` once, in commit
order, or raises `SlotLost`. It confirms a position only after the consumer has acknowledged it. If the consumer does
not call `receive`, capture reads nothing, so memory is bounded.**

Start of the stream: if the consumer's position has the serving epoch, its LSN belongs to the same history, and the
stream starts there. Otherwise the LSN may belong to another history (DESIGN.md), so the stream starts at the slot's
confirmed LSN, and the consumer drops the changes that it has.

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
"""The bounds of one `receive`. Debezium's max.batch.size is 2,048 events."""

FEEDBACK_INTERVAL_S: Final = 1.0
"""A status message each second requests a keepalive, so that a silence of a few seconds means a dead stream.
PostgreSQL's wal_receiver_status_interval is 10 s, its wal_sender_timeout 60 s."""

PROGRESS_INTERVAL_US: Final = 500_000
"""The least time between two progress items with the same position."""

_XLOG_DATA: Final = struct.Struct("!xQQq")
_KEEPALIVE: Final = struct.Struct("!xQqB")
_STATUS: Final = struct.Struct("!cQQQqB")

_log = logging.getLogger(__name__)


class StreamEnded(CaptureError):
    """The ledger ended the stream."""


@dataclass(slots=True, kw_only=True)
class CaptureCounts:
    """The work of a capture, for metrics."""

    transactions: int = 0
    bytes_read: int = 0


@asynccontextmanager
async def open_capture(
    conninfo: str, *, slot: str, start: Position, epoch: Epoch, counts: CaptureCounts | None = None
) -> AsyncGenerator["Capture"]:
    """Open the stream of ``slot`` after ``start``. The slot is free again when the context has ended.

    Args:
        conninfo: libpq conninfo of the ledger's primary, a role with REPLICATION.
        slot: Name of a logical slot that uses pgoutput.
        start: Checkpoint of the consumer; `ZERO` if it has nothing.
        epoch: The serving epoch.
        counts: Counts to continue; None for new ones.

    Raises:
        SlotLost: The slot is missing, invalidated, or past ``start``.
        SlotBusy: Another walsender holds the slot.
        SourceUnavailable: The ledger does not answer, or is not the primary.
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
    """An open stream. Call `receive` from one task only, and `confirm` from any task of the same loop."""

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
            connection: A connection on which START_REPLICATION has succeeded.
            start: The position of the consumer.
            epoch: The serving epoch.
            first_fence: The row with which the stream must begin if the consumer has nothing, else None.
            counts: Counts to continue; None for new ones.
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
        """Start the periodic status messages."""
        self._pgconn.nonblocking = 1
        self._tick()

    def stop_feedback(self) -> None:
        """Stop the periodic status messages."""
        if self._timer is not None:
            self._timer.cancel()

    async def receive_first(self) -> list[Item]:
        """Return the first items, after checking that the stream begins where the consumer needs it.

        Raises:
            SlotLost: The stream begins later.
            StreamEnded: The ledger ended the stream.
            MalformedMessage: A message cannot be parsed.
        """
        items = await self.receive()
        while self._first_fence is not None:
            items += await self.receive()
        return items

    async def receive(self) -> list[Item]:
        """Wait for items; return those that have arrived, in order, at least one, up to the bounds.

        Raises:
            StreamEnded: The ledger ended the stream.
            SlotLost: The stream begins too late; only before `receive_first` has returned.
            MalformedMessage: A message cannot be parsed.
        """
        while True:
            items = self._drain()
            if items:
                return items
            await wait_readable(self._pgconn)
            self._read_socket()

    def receive_nowait(self) -> list[Item]:
        """Return the items that have arrived, in order, up to the bounds; none if there are none. Does not wait.

        Raises:
            StreamEnded: The ledger ended the stream.
            MalformedMessage: A message cannot be parsed.
        """
        self._read_socket()
        return self._drain()

    def confirm(self, position: Position) -> None:
        """Confirm to the slot that the consumer has committed everything up to ``position``.

        A position of another epoch is ignored, because its LSN may belong to another history. A position that was not
        sent is ignored, too. A later acknowledgement of the consumer covers it.
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
        """Return what libpq has buffered, up to the bounds."""
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
        """Check that the stream of a consumer with nothing begins with the ledger's first fence row."""
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
        # Before the serving epoch's fence row the consumer has no change of that epoch. The progress shows that the
        # stream works, and not that the view is fresh.
        return Progress(position=self._position, sent_at_us=sent_at_us if caught_up else 0)

    def _tick(self) -> None:
        self._send_status(ask_for_reply=True)
        self._timer = self._loop.call_later(FEEDBACK_INTERVAL_S, self._tick)

    def _send_status(self, *, ask_for_reply: bool) -> None:
        """Report the confirmed position as written, flushed and applied.

        The written position is deliberately not the received one: a walsender reports the progress of an idle stream
        at once only while its client appears to lag.
        """
        lsn = self._confirmed_lsn
        now_us = time.time_ns() // 1000 - POSTGRES_EPOCH_US
        try:
            self._pgconn.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, now_us, ask_for_reply))
            self._pgconn.flush()
        except psycopg.Error as error:
            # The next read fails on the same broken connection, and ends the stream with the reason.
            _log.debug("feedback was not sent: %s", one_line(error))
