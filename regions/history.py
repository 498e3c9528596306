"""Records the course of each epoch: the leader, the reason, the start time and the duration of each step.

Decides the content of an entry, from the observations of one agent. The agent of the leader that the record names
writes the entry to etcd when the epoch serves, or when a later epoch replaces it. Durations are differences of a
monotonic clock; the wall clock is for people (rule 16).
"""

import json
from dataclasses import dataclass, field
from typing import Any, cast

from regions.identity import Epoch, RegionName
from regions.leadership import Leadership

STEPS_MAX = 64
"""Bound on the recorded steps of one epoch, which may repeat its steps many times."""


@dataclass(slots=True, kw_only=True)
class EpochEntry:
    """One epoch as one agent observed it.

    Attributes:
        epoch: The epoch.
        leader: The last candidate or leader of the epoch.
        reason: Why the epoch was begun.
        began: When its record was first written, RFC 3339.
        served: Whether it reached the phase ``serving``.
        phases_ms: Duration of each phase before ``serving``, milliseconds.
        steps_ms: Duration of each effect on the leader's member by name, in order, milliseconds; the last one of a
            name.
    """

    epoch: Epoch
    leader: RegionName
    reason: str
    began: str
    served: bool = False
    phases_ms: dict[str, float] = field(default_factory=dict[str, float])
    steps_ms: dict[str, float] = field(default_factory=dict[str, float])

    def to_json(self) -> bytes:
        """Return the JSON that is stored in etcd."""
        return json.dumps(self.document(), separators=(",", ":")).encode()

    def document(self) -> dict[str, object]:
        """Return the fields for output, durations rounded to 0.1 ms."""
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
    """Return the fields of a stored entry; None if it cannot be parsed."""
    try:
        fields = json.loads(stored)
    except ValueError:
        return None
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) and "epoch" in fields else None


class EpochHistory:
    """Builds entries from the records of one cell and the steps of the own member."""

    def __init__(self, region: RegionName) -> None:
        self._region = region
        self._entry: EpochEntry | None = None
        self._phase: str | None = None
        self._since = 0.0

    def note_record(self, record: Leadership, *, now: float) -> list[EpochEntry]:
        """Take a new record; return the entries that this agent must store.

        Args:
            record: The newest record.
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
            # An agent that starts after the epoch began to serve did not observe it, and writes no entry.
            entry.served = record.phase == "serving"
            self._phase, self._since = record.phase, now
            return finished
        entry.leader = record.leader
        # An epoch that a release began had no record yet, so it had no time either.
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
        """Record the duration of an effect on the own member, if its epoch is current and does not serve yet."""
        entry = self._entry
        if entry is not None and entry.epoch == epoch and not entry.served and len(entry.steps_ms) < STEPS_MAX:
            entry.steps_ms[name] = took_ms
