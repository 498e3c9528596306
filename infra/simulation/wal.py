"""The write-ahead log of a modelled PostgreSQL: entries, LSNs, and timelines as PostgreSQL numbers them.

An LSN is a place in the list: entry ``n`` ends at LSN ``n + 1``. Entries are shared between members and compared by
identity, so two histories agree up to an LSN exactly if they have the same entry before it; that is for checkers,
PostgreSQL itself sees numbers only.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from regions.identity import Epoch

EntryKind = Literal["row", "fence", "other", "part"]


class Entry:
    """One record of WAL.

    Attributes:
        kind: A client's row, the fence row of an epoch, anything else that takes place in WAL, or the first part of a
            record whose rest follows.
        epoch: Under which its primary ran.
        key: The idempotency key of a row.
        fence_id: The identity of a fence row.
        copies: A bit for each member that has had it on its disk.
    """

    __slots__ = ("copies", "epoch", "fence_id", "key", "kind")

    def __init__(self, kind: EntryKind, epoch: Epoch, *, key: int = -1, fence_id: UUID | None = None) -> None:
        self.kind = kind
        self.epoch = epoch
        self.key = key
        self.fence_id = fence_id
        self.copies = 0


Timelines = tuple[tuple[int, int], ...]
"""Numbers of timelines with the LSN at which each begins; the last one is the current one."""

FIRST: Timelines = ((1, 0),)


class Wal:
    """The WAL of one member, all of it on disk but what is beyond ``flushed``.

    Attributes:
        entries: The log.
        flushed: Its LSN on disk.
        timelines: The history of its timelines.
        newest_timeline: The highest number whose history file it has, own or fetched.
        keys: LSN of each row by its key.
        fences: (LSN, epoch) of each fence row, in order.
    """

    __slots__ = ("bit", "entries", "fences", "flushed", "keys", "newest_timeline", "timelines")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.entries: list[Entry] = []
        self.flushed = 0
        self.timelines = FIRST
        self.newest_timeline = 1
        self.keys: dict[int, int] = {}
        self.fences: list[tuple[int, Epoch]] = []

    def append(self, entry: Entry) -> int:
        """Write an entry, not yet to disk, and return the LSN at which it ends."""
        self.entries.append(entry)
        end = len(self.entries)
        if entry.kind == "row":
            self.keys[entry.key] = end
        elif entry.kind == "fence":
            self.fences.append((end, entry.epoch))
        return end

    def flush(self) -> None:
        """Bring everything to disk."""
        bit = self.bit
        for entry in self.entries[self.flushed :]:
            entry.copies |= bit
        self.flushed = len(self.entries)

    def truncate(self, end: int) -> None:
        """Lose everything behind an LSN."""
        for entry in self.entries[end:]:
            if entry.kind == "row" and self.keys.get(entry.key, 0) > end:
                del self.keys[entry.key]
        del self.entries[end:]
        while self.fences and self.fences[-1][0] > end:
            self.fences.pop()
        self.flushed = min(self.flushed, end)
        self.timelines = until(self.timelines, end)

    def receive(self, source: Wal, upto: int) -> None:
        """Take what a member that it streams from has, from its own end on, whatever stands before (rule 11)."""
        for entry in source.entries[len(self.entries) : upto]:
            self.append(entry)
        self.flush()
        self.timelines = until(source.timelines, len(self.entries))
        self.newest_timeline = max(self.newest_timeline, source.newest_timeline)

    def copy(self, source: Wal) -> None:
        """Become a base backup."""
        self.entries = []
        self.keys = {}
        self.fences = []
        self.flushed = 0
        self.timelines = FIRST
        self.newest_timeline = 1
        self.receive(source, source.flushed)

    def promote(self, epoch: Epoch) -> None:
        """Begin the timeline after the highest one that is known here (rule 11: elsewhere it may exist already)."""
        self.truncate(self.whole)
        self.newest_timeline = max(self.newest_timeline, self.timeline) + 1
        self.timelines = (*self.timelines, (self.newest_timeline, len(self.entries)))
        self.append(Entry("other", epoch))
        self.flush()

    @property
    def timeline(self) -> int:
        """The number of the current timeline."""
        return self.timelines[-1][0]

    @property
    def whole(self) -> int:
        """Where its last whole record ends: what comes after it is half a record, and cannot be replayed."""
        torn = bool(self.entries) and self.entries[-1].kind == "part"
        return len(self.entries) - torn

    @property
    def lineage(self) -> Epoch:
        """The epoch of the newest fence row; 0 before the first."""
        return self.fences[-1][1] if self.fences else 0

    def ancestry(self, upto: int) -> tuple[Epoch, ...]:
        """The epochs of the fence rows up to an LSN."""
        return tuple(epoch for end, epoch in self.fences if end <= upto)

    def accepts(self, standby: Wal) -> bool:
        """Whether PostgreSQL lets a standby with this WAL stream from here: by timeline number and LSN alone."""
        end, number = standby.whole, standby.timeline
        if number == self.timeline:
            return end <= self.flushed
        for (mine, _), (_, stop) in zip(self.timelines, self.timelines[1:], strict=False):
            if mine == number:
                return end <= stop
        return False

    def fork(self, other: Wal) -> int:
        """Where pg_rewind believes that two histories part: after the last timeline with equal number and begin."""
        end = 0
        mine, theirs = (*self.timelines, (0, len(self.entries))), (*other.timelines, (0, len(other.entries)))
        for index, (one, two) in enumerate(zip(self.timelines, other.timelines, strict=False)):
            if one != two:
                break
            end = min(mine[index + 1][1], theirs[index + 1][1])
        return end

    def has(self, entry: Entry, end: int) -> bool:
        """Whether an entry that ended at an LSN is here, at the same place."""
        return len(self.entries) >= end and self.entries[end - 1] is entry


def until(timelines: Timelines, end: int) -> Timelines:
    """The history that WAL up to an LSN belongs to: a timeline counts once something of it is there."""
    return tuple(one for index, one in enumerate(timelines) if index == 0 or one[1] < end)
