"""How far this region's view is behind the ledger, as far as this region can know.

Decides what "lag" means. Refuses to read clocks: `now` is passed in. **The lag is never understated
by a dead stream: without a connection it grows with the time since the last word of the source, and while a snapshot is
taken with the time since that began.**
"""

from collections import deque

from regions.identity import RegionName
from regions.position import ZERO, Position
from sync.change import Item, Transaction


class LagMeter:
    """What was heard, what was applied, and the difference.

    Attributes:
        applied: Position of the view; None before the checkpoint was read.
        heard: Highest position the source has told; None before it told any.
        source: The region that the stream comes from, while connected.
        trouble: Why there is no stream, one sentence; None while there is one.
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
        # Bounded by what the channel and apply hold between them.
        self._waiting: deque[tuple[Position, int]] = deque()

    @property
    def connected(self) -> bool:
        """Whether a stream is open."""
        return self.source is not None

    @property
    def takes_snapshot(self) -> bool:
        """Whether the view lacks changes that nobody sends any more, until a snapshot is applied to its end."""
        return self._snapshot_since is not None

    def note_connected(self, source: RegionName) -> None:
        """A stream is open."""
        self.source, self.trouble = source, None
        if self._snapshot_end is None:
            self._snapshot_since = None

    def note_snapshot(self, source: RegionName, *, now: float) -> None:
        """A stream is open that is a snapshot."""
        self.source, self.trouble = source, None
        self._snapshot_since = now if self._snapshot_since is None else self._snapshot_since
        self._snapshot_end = None

    def note_disconnected(self, trouble: str) -> None:
        """There is no stream, for this reason."""
        self.source, self.trouble = None, trouble

    def note_received(self, item: Item, *, now: float) -> None:
        """The source sent ``item``."""
        self._received_at = now
        self.received = max(self.received or ZERO, item.position)
        if isinstance(item, Transaction) and not item.partial:
            self._waiting.append((item.position, item.commit_ts_us))
            if self.takes_snapshot and self._snapshot_end is None:
                self._snapshot_end = item.position

    def note_applied(self, position: Position) -> None:
        """The view stands at ``position``."""
        self.applied = position
        if self._snapshot_end is not None and position >= self._snapshot_end:
            self._snapshot_since = self._snapshot_end = None
        while self._waiting and self._waiting[0][0] <= position:
            self._waiting.popleft()

    def note_restarted(self) -> None:
        """What was heard and not applied is dropped and will be sent again."""
        self._waiting.clear()

    def lag_ms(self, *, now: float, now_us: int) -> int:
        """Return the lag in milliseconds.

        Args:
            now: Monotonic seconds.
            now_us: Wall clock, microseconds since 1970; compared with the ledger's commit times.
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
