"""The delay line: carries one direction of one connection, keeps its order and holds no more bytes than its window.

Decides when each item is delivered and when the sender must be slowed down. It knows no sockets; it calls functions.
If the direction has no fault, `push` delivers an item at once, without a timer.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from infra.relay.faults import CLEAR, Fault, Pair, arrival

# TCP aborts a connection after about this long without an acknowledgement (net.ipv4.tcp_retries2 = 15: 924 s).
HELD_S_MAX = 900.0

# A timer of the event loop counts whole milliseconds and may fire this much early.
TIMER_SLACK_S = 0.0005


class Signal(Enum):
    """What a delay line carries besides bytes, with the same delay."""

    OPEN = auto()  # the client wants to connect (SYN)
    OPENED = auto()  # the other side accepted the connection (SYN-ACK)
    END = auto()  # no more bytes in this direction (FIN)
    RESET = auto()  # the connection is aborted (RST)


Item = bytes | Signal


class Direction:
    """A directed pair of regions: its present fault, its delay lines, and its counters."""

    __slots__ = (
        "bytes_total",
        "clear",
        "connections_open",
        "connections_total",
        "delay_lines",
        "fault",
        "held_bytes",
        "pair",
        "refused_total",
        "window_bytes",
    )  # fmt: skip

    def __init__(self, pair: Pair, fault: Fault = CLEAR) -> None:
        self.pair = pair
        self.delay_lines: set[DelayLine] = set()
        self.bytes_total = 0
        self.held_bytes = 0
        self.connections_total = 0
        self.connections_open = 0
        self.refused_total = 0
        self.fault = fault
        self.clear = fault.is_clear
        self.window_bytes = fault.window_bytes

    def apply(self, fault: Fault) -> None:
        """Change the fault; items in transit keep the delay that they were sent with."""
        healed = self.fault.cut and not fault.cut
        self.fault = fault
        self.clear = fault.is_clear
        self.window_bytes = fault.window_bytes
        for delay_line in tuple(self.delay_lines):
            delay_line.fault_changed(healed=healed)


class DelayLine:
    """Carries the items of one connection in one direction, in order."""

    __slots__ = (
        "_blocked", "_deliver", "_direction", "_expire", "_expiry", "_held_bytes", "_last_arrival", "_loop",
        "_not_before", "_queue", "_slow_down", "_slowed", "_timer",
    )  # fmt: skip

    def __init__(
        self,
        direction: Direction,
        *,
        deliver: Callable[[Item], None],
        slow_down: Callable[[bool], None],
        expire: Callable[[], None],
    ) -> None:
        """Make an empty delay line.

        Args:
            direction: has the fault that applies.
            deliver: called with each item when it arrives.
            slow_down: called with True if the sender must pause, and with False if it may resume.
            expire: called if a cut has held an item for HELD_S_MAX.
        """
        self._direction = direction
        self._deliver = deliver
        self._slow_down = slow_down
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, Item]] = deque()
        self._held_bytes = 0
        self._last_arrival = 0.0
        self._not_before = 0.0
        self._blocked = False
        self._slowed = False
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        direction.delay_lines.add(self)

    def push(self, item: Item) -> None:
        """Send an item; without a fault it is delivered at once."""
        if self._direction.clear and not self._queue and not self._blocked:
            self._hand_over(item)
            return
        if item is Signal.RESET and self._blocked:
            # The reset must reach a receiver whose buffer is full.
            self._drop_queue()
            self._blocked = False
        now = time.monotonic()
        self._last_arrival = arrival(
            self._direction.fault, now=now, previous=self._last_arrival, draws=iter(random.random, None)
        )
        self._queue.append((self._last_arrival, item))
        self._count_held(item, +1)
        if len(self._queue) == 1:
            self._wait_for_first(now)
        self._regulate()

    def block(self) -> None:
        """Stop delivering, because the receiver's buffer is full."""
        self._blocked = True
        self._cancel_timer()
        self._regulate()

    def unblock(self) -> None:
        """Resume delivering."""
        self._blocked = False
        self._drain()

    def fault_changed(self, *, healed: bool) -> None:
        """Apply the new fault of the direction; `healed` means that a cut has ended."""
        now = time.monotonic()
        if healed:
            self._not_before = now + self._direction.fault.delay_ms / 1000
        self._cancel_timer()
        if not self._direction.fault.cut and self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._wait_for_first(now)
        self._regulate()

    def close(self) -> None:
        """Drop all items in transit and stop all timers; the delay line is not used afterwards."""
        self._direction.delay_lines.discard(self)
        self._drop_queue()
        self._cancel_timer()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _drain(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._queue and not self._blocked and not self._direction.fault.cut:
            if self._first_due() > now + TIMER_SLACK_S:
                break
            _, item = self._queue.popleft()
            self._count_held(item, -1)
            self._hand_over(item)
        self._wait_for_first(now)
        self._regulate()

    def _hand_over(self, item: Item) -> None:
        if isinstance(item, bytes):
            self._direction.bytes_total += len(item)
        self._deliver(item)

    def _first_due(self) -> float:
        return max(self._queue[0][0], self._not_before)

    def _wait_for_first(self, now: float) -> None:
        if not self._queue:
            return
        if self._direction.fault.cut:
            if self._expiry is None:
                self._expiry = self._loop.call_later(HELD_S_MAX, self._expire)
        elif not self._blocked and self._timer is None:
            self._timer = self._loop.call_later(max(0.0, self._first_due() - now), self._drain)

    def _regulate(self) -> None:
        """Pause the sender if more than the window is held; resume it at half of the window."""
        limit = self._direction.window_bytes // 2 if self._slowed else self._direction.window_bytes
        slowed = self._blocked or self._held_bytes > limit
        if slowed != self._slowed:
            self._slowed = slowed
            self._slow_down(slowed)

    def _count_held(self, item: Item, sign: int) -> None:
        if isinstance(item, bytes):
            self._held_bytes += sign * len(item)
            self._direction.held_bytes += sign * len(item)

    def _drop_queue(self) -> None:
        self._direction.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._queue.clear()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
