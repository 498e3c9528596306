"""Computes the lag of this region's view behind the ledger, as far as this region can know it.

Decides what "lag" means. Reads no clock; callers pass `now`. **A dead stream never makes the lag look small: without a
connection the lag is at least the time since the last received item, and during a snapshot at least the time since the
snapshot began.**
"""

from collections import deque

from regions.identity import RegionName
from regions.position import ZERO, Position
from sync.change import Item, Transaction


class LagMeter:
    """Compares the received items with the applied position.

    Attributes:
        applied: Position of the view; None before the checkpoint was read.
        received: Highest received position; None before the first item.
        source: The region that sends the stream; None while no stream is open.
        trouble: Why no stream is open, one sentence; None while one is open.
    """

    def __init__(self, *, now: float) -> None:
        """Begin at ``now``, monotonic seconds, with nothing received."""
        self.applied: Position | None = None
        self.received: Position | None = None
        self.source: RegionName | None = None
        self.trouble: str | None = "not connected yet"
        self._received_at = now
        self._snapshot_since: float | None = None
        self._snapshot_end: Position | None = None
        # Bounded by the buffers of the channel and of apply.
        self._waiting: deque[tuple[Position, int]] = deque()

    @property
    def connected(self) -> bool:
        """Whether a stream is open."""
        return self.source is not None

    @property
    def takes_snapshot(self) -> bool:
        """Whether the view waits for a snapshot, because changes are no longer available; until its end is applied."""
        return self._snapshot_since is not None

    def note_connected(self, source: RegionName) -> None:
        """Note that a stream of changes is open."""
        self.source, self.trouble = source, None
        if self._snapshot_end is None:
            self._snapshot_since = None

    def note_snapshot(self, source: RegionName, *, now: float) -> None:
        """Note that a stream is open and is a snapshot."""
        self.source, self.trouble = source, None
        self._snapshot_since = now if self._snapshot_since is None else self._snapshot_since
        self._snapshot_end = None

    def note_disconnected(self, trouble: str) -> None:
        """Note that no stream is open, and why."""
        self.source, self.trouble = None, trouble

    def note_received(self, item: Item, *, now: float) -> None:
        """Note that ``item`` was received."""
        self._received_at = now
        self.received = max(self.received or ZERO, item.position)
        if isinstance(item, Transaction) and not item.partial:
            self._waiting.append((item.position, item.commit_ts_us))
            if self.takes_snapshot and self._snapshot_end is None:
                self._snapshot_end = item.position

    def note_applied(self, position: Position) -> None:
        """Note that the view's checkpoint is ``position``."""
        self.applied = position
        if self._snapshot_end is not None and position >= self._snapshot_end:
            self._snapshot_since = self._snapshot_end = None
        while self._waiting and self._waiting[0][0] <= position:
            self._waiting.popleft()

    def note_restarted(self) -> None:
        """Note a new subscription: items that were received and not applied are dropped, and will be sent again."""
        self._waiting.clear()

    def lag_ms(self, *, now: float, now_us: int) -> int:
        """Return the lag in milliseconds.

        Args:
            now: Monotonic seconds.
            now_us: Wall clock, microseconds since 1970. It is compared with the ledger's commit times.
        """
        silent_ms = int((now - self._received_at) * 1000)
        if self._snapshot_since is not None:
            silent_ms = max(silent_ms, int((now - self._snapshot_since) * 1000))
        waiting_ms = max(0, now_us - self._waiting[0][1]) // 1000 if self._waiting else 0
        if not self.connected or self.takes_snapshot:
            return max(silent_ms, waiting_ms)
        if self.received is None or self.applied is None:
            return silent_ms
        return 0 if self.applied >= self.received else waiting_ms
