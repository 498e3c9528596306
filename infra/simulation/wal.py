"""Models the write-ahead log of PostgreSQL: entries, LSNs, and timelines as PostgreSQL numbers them.

An LSN is an index into the list of entries: entry ``n`` ends at LSN ``n + 1``. Members share entry objects, and
checkers compare them by identity: two histories agree up to an LSN exactly if they have the same entry before it.
The modelled PostgreSQL compares only timeline numbers and LSNs.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from regions.identity import Epoch

EntryKind = Literal["row", "fence", "other", "part"]


class Entry:
    """One record of WAL.

    Attributes:
        kind: ``row`` of a client, ``fence`` row of an epoch, ``part`` (the first part of an incomplete record), or
            ``other`` for any other record.
        epoch: The epoch of the primary that wrote it.
        key: The idempotency key of a row; -1 for other kinds.
        fence_id: The identity of a fence row.
        copies: A bit for each member that has flushed it at some time.
    """

    __slots__ = ("copies", "epoch", "fence_id", "key", "kind")

    def __init__(self, kind: EntryKind, epoch: Epoch, *, key: int = -1, fence_id: UUID | None = None) -> None:
        self.kind = kind
        self.epoch = epoch
        self.key = key
        self.fence_id = fence_id
        self.copies = 0


Timelines = tuple[tuple[int, int], ...]
"""(timeline number, LSN at which it begins) of each timeline, oldest first; the last one is the current one."""

FIRST: Timelines = ((1, 0),)


class Wal:
    """The WAL of one member; the entries up to ``flushed`` are on disk.

    Attributes:
        bit: The bit of this member in `Entry.copies`.
        entries: The log.
        flushed: The LSN up to which the log is on disk.
        timelines: Its timeline history.
        newest_timeline: The highest timeline number of which it has a history file, its own or a fetched one.
        keys: The LSN of each row, by key.
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
        """Append an entry without a flush, and return the LSN at which it ends."""
        self.entries.append(entry)
        end = len(self.entries)
        if entry.kind == "row":
            self.keys[entry.key] = end
        elif entry.kind == "fence":
            self.fences.append((end, entry.epoch))
        return end

    def flush(self) -> None:
        """Flush all entries to disk."""
        bit = self.bit
        for entry in self.entries[self.flushed :]:
            entry.copies |= bit
        self.flushed = len(self.entries)

    def truncate(self, end: int) -> None:
        """Remove everything after an LSN."""
        for entry in self.entries[end:]:
            if entry.kind == "row" and self.keys.get(entry.key, 0) > end:
                del self.keys[entry.key]
        del self.entries[end:]
        while self.fences and self.fences[-1][0] > end:
            self.fences.pop()
        self.flushed = min(self.flushed, end)
        self.timelines = timelines_up_to(self.timelines, end)

    def receive(self, source: Wal, upto: int) -> None:
        """Append and flush the source's entries from the own end up to an LSN; earlier ones may differ (rule 11)."""
        for entry in source.entries[len(self.entries) : upto]:
            self.append(entry)
        self.flush()
        self.timelines = timelines_up_to(source.timelines, len(self.entries))
        self.newest_timeline = max(self.newest_timeline, source.newest_timeline)

    def copy(self, source: Wal) -> None:
        """Become a base backup of the source."""
        self.entries = []
        self.keys = {}
        self.fences = []
        self.flushed = 0
        self.timelines = FIRST
        self.newest_timeline = 1
        self.receive(source, source.flushed)

    def promote(self, epoch: Epoch) -> None:
        """Begin the timeline after the highest known one; another member may have taken the same number (rule 11)."""
        self.truncate(self.complete_lsn)
        self.newest_timeline = max(self.newest_timeline, self.timeline) + 1
        self.timelines = (*self.timelines, (self.newest_timeline, len(self.entries)))
        self.append(Entry("other", epoch))
        self.flush()

    @property
    def timeline(self) -> int:
        """The number of the current timeline."""
        return self.timelines[-1][0]

    @property
    def complete_lsn(self) -> int:
        """The LSN at which its last complete record ends; an incomplete record after it cannot be replayed."""
        torn = bool(self.entries) and self.entries[-1].kind == "part"
        return len(self.entries) - torn

    @property
    def lineage(self) -> Epoch:
        """The epoch of the newest fence row; 0 if there is none."""
        return self.fences[-1][1] if self.fences else 0

    def ancestry(self, upto: int) -> tuple[Epoch, ...]:
        """The epochs of the fence rows up to an LSN."""
        return tuple(epoch for end, epoch in self.fences if end <= upto)

    def accepts(self, standby: Wal) -> bool:
        """Whether PostgreSQL lets a standby with this WAL stream from here; compares only timeline number and LSN."""
        end, number = standby.complete_lsn, standby.timeline
        if number == self.timeline:
            return end <= self.flushed
        for (mine, _), (_, stop) in zip(self.timelines, self.timelines[1:], strict=False):
            if mine == number:
                return end <= stop
        return False

    def fork(self, other: Wal) -> int:
        """The LSN at which pg_rewind sees two histories fork: after the last timeline with equal number and start."""
        end = 0
        mine, theirs = (*self.timelines, (0, len(self.entries))), (*other.timelines, (0, len(other.entries)))
        for index, (one, two) in enumerate(zip(self.timelines, other.timelines, strict=False)):
            if one != two:
                break
            end = min(mine[index + 1][1], theirs[index + 1][1])
        return end

    def has(self, entry: Entry, end: int) -> bool:
        """Whether this WAL has an entry, ending at the same LSN."""
        return len(self.entries) >= end and self.entries[end - 1] is entry


def timelines_up_to(timelines: Timelines, end: int) -> Timelines:
    """The timeline history of WAL that ends at an LSN; a timeline counts only if the WAL has an entry of it."""
    return tuple(one for index, one in enumerate(timelines) if index == 0 or one[1] < end)
