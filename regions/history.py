"""What became of each epoch: who began it, why, when, and how long each step took.

Decides what an entry says, from what one agent sees. The agent of the region that the epoch's record names writes it to
etcd when the epoch serves, or when a later one has taken its place. Times are differences of a monotonic clock; the
wall clock is for people (rule 16).
"""

import json
from dataclasses import dataclass, field
from typing import Any, cast

from regions.identity import Epoch, RegionName
from regions.leadership import Leadership

STEPS_MAX = 64
"""Steps of one epoch that are kept: an epoch that is tried again and again says enough with these."""


@dataclass(slots=True, kw_only=True)
class EpochEntry:
    """One epoch as one agent saw it.

    Attributes:
        epoch: Which.
        leader: Who acted last under it.
        reason: Why it was begun.
        began: When its record was first written, RFC 3339.
        served: Whether it came to serve.
        phases_ms: How long it stayed in each phase before it served.
        steps_ms: How long each effect on the leader's member took, by name, in order; the last of a name counts.
    """

    epoch: Epoch
    leader: RegionName
    reason: str
    began: str
    served: bool = False
    phases_ms: dict[str, float] = field(default_factory=dict[str, float])
    steps_ms: dict[str, float] = field(default_factory=dict[str, float])

    def to_json(self) -> bytes:
        """Return the entry as it is stored."""
        return json.dumps(self.document(), separators=(",", ":")).encode()

    def document(self) -> dict[str, object]:
        """Return the entry as it is shown."""
        rounded = {name: round(ms, 1) for name, ms in self.phases_ms.items()}
        steps = {name: round(ms, 1) for name, ms in self.steps_ms.items()}
        return {
            "epoch": self.epoch,
            "leader": self.leader,
            "reason": self.reason,
            "began": self.began,
            "served": self.served,
            "phases_ms": rounded,
            "steps_ms": steps,
        }


def parse_entry(stored: bytes) -> dict[str, Any] | None:
    """Return a stored entry; None for what is none."""
    try:
        fields = json.loads(stored)
    except ValueError:
        return None
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) and "epoch" in fields else None


class EpochHistory:
    """Follows the record of one cell and the steps of the own member."""

    def __init__(self, region: RegionName) -> None:
        self._region = region
        self._entry: EpochEntry | None = None
        self._phase: str | None = None
        self._since = 0.0

    def note_record(self, record: Leadership, *, now: float) -> list[EpochEntry]:
        """Take the record as it is now; return the entries that this agent is to store.

        Args:
            record: The newest one.
            now: Monotonic seconds.
        """
        finished: list[EpochEntry] = []
        entry = self._entry
        if entry is not None and record.epoch < entry.epoch:
            return finished
        if entry is None or entry.epoch != record.epoch:
            if entry is not None and not entry.served and entry.leader == self._region:
                finished.append(entry)
            entry = self._entry = EpochEntry(
                epoch=record.epoch, leader=record.leader, reason=record.reason, began=record.since
            )
            # An agent that comes when it serves already has nothing to tell of it.
            entry.served = record.phase == "serving"
            self._phase, self._since = record.phase, now
            return finished
        entry.leader = record.leader
        # One that a release has begun was not written then.
        entry.began = entry.began or record.since
        if record.phase != self._phase:
            assert self._phase is not None, "an epoch has a phase"
            entry.phases_ms[self._phase] = (now - self._since) * 1000
            self._phase, self._since = record.phase, now
            if record.phase == "serving":
                entry.served = True
                if record.leader == self._region:
                    finished.append(entry)
        return finished

    def note_step(self, epoch: Epoch, name: str, took_ms: float) -> None:
        """Take how long an effect on the own member took, for the epoch that it was for."""
        entry = self._entry
        if entry is not None and entry.epoch == epoch and not entry.served and len(entry.steps_ms) < STEPS_MAX:
            entry.steps_ms[name] = took_ms
