"""Checks the invariants of a run from its whole state. Changes nothing, and does not know which faults are injected.

Each checker holds one rule: acknowledged writes survive, epochs exclude each other and only increase, promises are
kept, strong reads never go back. A late acknowledgement of a write that reached the quorum before a freeze is correct
(rule 9): the checkers require only that the write is in each ledger that begins to serve in a later epoch.

Each checker counts the facts that it compared. If a required checker compared none in a run or in a campaign, that is
a finding as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from infra.simulation.member import Member
from infra.simulation.node import Node
from infra.simulation.scheduler import Scheduler
from infra.simulation.wal import Entry
from infra.simulation.workload import ReadBaseline, SeenEntry
from regions.failover.events import Promise, Vote
from regions.failover.heartbeats import SendHeartbeat
from regions.failover.states import State
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership, Phase

PHASES: Mapping[Phase, int] = {"bootstrapping": 0, "recruiting": 1, "establishing": 2, "promoting": 2, "serving": 3}
"""The order of the phases within an epoch."""

CHECKERS: Mapping[str, str] = {
    "epochs grow": "records that followed another",
    "one epoch acknowledges": "acknowledgements after a later epoch had opened",
    "acknowledged once": "acknowledgements of a key that had been acknowledged",
    "applied once": "ledgers with two rows or more that opened",
    "quorum": "acknowledged writes",
    "acknowledged writes survive": "acknowledged writes that a later epoch had to have when it opened",
    "epochs exclude": "pairs of openings",
    "fenced": "regions that opened an epoch",
    "promises": "promises that replaced another",
    "votes": "votes",
    "received after a vote": "WAL received from a primary after a vote",
    "strong reads": "strong reads after an acknowledged write or another strong read",
    "invariants": "cores after an event that made them act",
    "liveness": "runs in which a commit was owed after the last fault",
    "no failover without a fault": "runs without a fault",
}
"""Each checker, and the facts that it counts."""

REQUIRED_IN_EACH_RUN = ("quorum", "fenced", "strong reads", "invariants")
"""Checkers that must compare a fact in every run; faults begin only after the cell was created.

The other checkers need a failover, or a client that repeats a write. A single run may have neither, a campaign must
have both.
"""

COPIES_MIN = 2
"""Number of members that have an acknowledged write at least: the primary and a standby."""


class Violation(Exception):
    """An invariant is violated. The run ends."""

    def __init__(self, checker: str, text: str) -> None:
        super().__init__(f"{checker}: {text}")
        self.checker = checker


class ServedLedger:
    """A ledger as it was when its region began to serve an epoch."""

    __slots__ = ("entries", "epoch", "region")

    def __init__(self, epoch: Epoch, region: RegionName, entries: list[Entry]) -> None:
        self.epoch = epoch
        self.region = region
        self.entries = entries


Acknowledged = tuple[Epoch, Entry, int]
"""An acknowledged write: the epoch of the acknowledgement, the entry, and the LSN at which it ends."""


class Checkers:
    """All checkers of one run.

    Attributes:
        served_ledgers: The ledger at each moment at which a region began to serve.
        serving_starts: (time, region, epoch) of each moment at which a region began to serve.
        transitions: How often each transition of the core's table was taken.
        records: (time, record) of each record that was written to etcd.
        facts: How many facts each checker compared.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.served_ledgers: list[ServedLedger] = []
        self.serving_starts: list[tuple[float, RegionName, Epoch]] = []
        self.transitions: Counter[tuple[State, State]] = Counter()
        self.records: list[tuple[float, Leadership]] = []
        self.facts: Counter[str] = Counter()
        self._voters = 0
        self._copies_min = 1
        self._bits: dict[RegionName, int] = {}
        self._acknowledged: list[Acknowledged] = []
        self._keys: dict[int, Entry] = {}
        self._newest: SeenEntry | None = None
        self._read: SeenEntry | None = None
        self._votes: dict[RegionName, Vote] = {}
        self._nodes: Mapping[RegionName, Node] = {}
        self._lost_under: dict[RegionName, Epoch] = {}

    def set_nodes(self, nodes: Mapping[RegionName, Node]) -> None:
        """Set the nodes of the run."""
        self._nodes = nodes
        self._bits = {region: node.member.wal.bit for region, node in nodes.items() if node.member is not None}

    def _fail(self, checker: str, text: str) -> None:
        self._scheduler.trace_line(f"VIOLATED {checker}: {text}")
        raise Violation(checker, f"at {self._scheduler.now:.3f} s, {text}")

    # Epochs only increase.

    def record_written(self, revision: int, record: Leadership) -> None:
        """A record was written to etcd."""
        self._scheduler.trace_line(
            f"etcd {revision}: epoch {record.epoch} {record.phase} {record.leader}: {record.reason}"
        )
        if self.records:
            self.facts["epochs grow"] += 1
            before = self.records[-1][1]
            if record.epoch < before.epoch:
                self._fail("epochs grow", f"epoch {record.epoch} was written over {before.epoch}")
            same = record.epoch == before.epoch
            if same and PHASES[record.phase] < PHASES[before.phase]:
                self._fail("epochs grow", f"epoch {record.epoch} went from {before.phase} to {record.phase}")
            chosen = before.phase != "recruiting"
            if same and chosen and record.leader != before.leader:
                self._fail("epochs grow", f"epoch {record.epoch} went from {before.leader} to {record.leader}")
            self._follows(before, record)
        self.records.append((self._scheduler.now, record))
        self._voters = sum(self._bits[voter] for voter in record.voters if voter in self._bits)
        majority = len(record.voters) // 2 + 1
        # Every majority of the voters that freezes must contain a copy. While voters change, commits already wait for
        # the next voters, so this may be one copy less than a majority of the record's voters.
        self._copies_min = len(record.voters) - majority + 1

    def _follows(self, before: Leadership, record: Leadership) -> None:
        """A promised next epoch belongs to the successor; another region has to skip it (rule 20)."""
        promised = before.succession
        if record.epoch == before.epoch:
            return
        handed = promised is not None and record.epoch == before.epoch + 1
        if promised is not None and handed and record.leader != promised.region:
            self._fail("epochs grow", f"epoch {record.epoch} was {promised.region}'s, and {record.leader} took it")
        if not handed and record.epoch > before.epoch + (1 if promised is None else 2):
            self._fail("epochs grow", f"epoch {record.epoch} followed {before.epoch}")

    # Every later leader has every acknowledged write.

    def write_acknowledged(self, member: Member, epoch: Epoch, entry: Entry, end: int) -> None:
        """A write was acknowledged."""
        if self._scheduler.trace is not None:
            self._scheduler.trace_line(f"ack {entry.key} epoch {epoch} at {member.region} lsn {end}")
        for served in self.served_ledgers:
            if served.epoch <= epoch:
                continue
            self.facts["one epoch acknowledges"] += 1
            if not _has(served.entries, entry, end):
                self._fail(
                    "one epoch acknowledges",
                    f"{member.region} acknowledged {entry.key} under epoch {epoch} after {served.region} had opened"
                    f" epoch {served.epoch} without it",
                )
        known = self._keys.get(entry.key)
        if known is None:
            self._keys[entry.key] = entry
        else:
            self.facts["acknowledged once"] += 1
            if known is not entry:
                self._fail("acknowledged once", f"key {entry.key} was acknowledged as two rows")
        self.facts["quorum"] += 1
        if not self._is_on_a_quorum(entry):
            copies = (entry.copies & self._voters).bit_count()
            self._fail(
                "quorum",
                f"{entry.key} was acknowledged by {member.region} with {copies} copies at voters,"
                f" {entry.copies.bit_count()} in all",
            )
        self._acknowledged.append((epoch, entry, end))
        if self._newest is None or end > self._newest[1]:
            self._newest = (entry, end)

    def _is_on_a_quorum(self, entry: Entry) -> bool:
        """Whether each majority of the voters has a copy, and the loss of one region leaves a copy (rule 1)."""
        at_voters = (entry.copies & self._voters).bit_count()
        return at_voters >= self._copies_min and entry.copies.bit_count() >= COPIES_MIN

    def serving_started(self, node: Node, epoch: Epoch) -> None:
        """A region begins to serve an epoch."""
        member = node.member
        assert member is not None, "writes without a ledger"
        self._scheduler.trace_line(f"OPEN epoch {epoch} at {node.region}")
        for served in self.served_ledgers:
            if served.epoch > epoch:
                # A region may begin to serve an outdated epoch; `write_acknowledged` checks the writes that it
                # acknowledges.
                continue
            self.facts["epochs exclude"] += 1
            if served.epoch == epoch and served.region != node.region:
                self._fail("epochs exclude", f"{node.region} and {served.region} both opened epoch {epoch}")
        entries = list(member.wal.entries)
        for acknowledged_epoch, entry, end in self._acknowledged:
            if acknowledged_epoch >= epoch:
                continue
            self.facts["acknowledged writes survive"] += 1
            if not _has(entries, entry, end):
                self._fail(
                    "acknowledged writes survive",
                    f"{node.region} opened epoch {epoch} without {entry.key}, acknowledged under {acknowledged_epoch}",
                )
        keys = [entry.key for entry in entries if entry.kind == "row"]
        self.facts["applied once"] += len(keys) > 1
        if len(set(keys)) != len(keys):
            self._fail("applied once", f"the ledger of {node.region} has a key twice in epoch {epoch}")
        self.facts["fenced"] += 1
        fences = [entry for entry in entries if entry.kind == "fence" and entry.epoch == epoch]
        if not any(self._is_on_a_quorum(entry) for entry in fences):
            self._fail("fenced", f"{node.region} opened epoch {epoch} without its fence row on a quorum")
        self.served_ledgers.append(ServedLedger(epoch, node.region, entries))
        self.serving_starts.append((self._scheduler.now, node.region, epoch))

    def serving_stopped(self, node: Node) -> None:
        """A region stops serving."""
        self._scheduler.trace_line(f"CLOSED at {node.region}")

    # Promises and votes are kept.

    def promise_stored(self, node: Node, before: Promise | None, after: Promise) -> None:
        """An agent has flushed a promise to its disk."""
        self._scheduler.trace_line(f"{node.region}: disk {after}")
        self.facts["promises"] += before is not None
        if before is not None and (
            after.epoch < before.epoch or after.lineage < before.lineage or after.floor < before.floor
        ):
            self._fail("promises", f"{node.region} replaced {before} by {after}")

    def heartbeat_sent(self, node: Node, beat: SendHeartbeat) -> None:
        """An agent sends a heartbeat; its vote is checked if it is new."""
        vote = beat.heartbeat.cells[0][1].vote
        known = self._votes.get(node.region)
        if vote is None or vote == known:
            return
        self.facts["votes"] += 1
        if known is not None and vote.epoch < known.epoch:
            self._fail("votes", f"{node.region} voted for {vote.epoch} after {known.epoch}")
        if node.disk is None or node.disk.epoch < vote.epoch:
            self._fail("votes", f"{node.region} published a vote for {vote.epoch} that is not on its disk")
        lost = self._lost_under.get(node.region, 0)
        if vote.position.epoch < lost:
            self._fail("votes", f"{node.region} votes with {vote.position} but lost WAL it had in epoch {lost}")
        member = node.member
        assert member is not None, "a vote without a ledger"
        if known is None or vote.epoch > known.epoch:
            if member.running and member.primary:
                self._fail("votes", f"{node.region} votes for {vote.epoch} while its ledger is primary")
            if vote.position.lsn < member.wal.complete_lsn:
                self._fail("votes", f"{node.region} votes with {vote.position} and has more WAL")
            self._votes[node.region] = vote

    def wal_received(self, standby: Member, source: Member) -> None:
        """A standby has received and flushed WAL."""
        vote = self._votes.get(standby.region)
        if vote is None or not source.primary:
            return
        self.facts["received after a vote"] += 1
        if source.epoch < vote.epoch:
            self._fail(
                "received after a vote",
                f"{standby.region} voted for epoch {vote.epoch} and received WAL of epoch {source.epoch}",
            )

    def wal_lost(self, member: Member, before: int) -> None:
        """A member lost WAL that it had on disk, through a rewind."""
        del before
        node = self._nodes[member.region]
        epoch = 0 if node.disk is None else node.disk.floor
        self._lost_under[member.region] = max(epoch, member.wal.lineage)

    # Strong reads never go back.

    def strong_read_started(self) -> ReadBaseline:
        """A strong read begins. Returns what its answer has to contain."""
        return (self._newest, self._read)

    def strong_read_answered(self, member: Member, baseline: ReadBaseline, visible: int) -> None:
        """A strong read was answered as current."""
        self.facts["strong reads"] += any(seen is not None for seen in baseline)
        for what, seen in zip(("an acknowledged write", "an earlier strong read"), baseline, strict=True):
            if seen is not None and not (seen[1] <= visible and member.wal.has(seen[0], seen[1])):
                self._fail("strong reads", f"{member.region} answered as current without {what} at {seen[1]}")
        if visible and (self._read is None or visible > self._read[1]):
            self._read = (member.wal.entries[visible - 1], visible)

    def effects_returned(self, node: Node, broken: Sequence[str]) -> None:
        """A core has returned effects; ``broken`` names its invariants that do not hold."""
        self.facts["invariants"] += 1
        for what in broken:
            self._fail("invariants", f"{node.region}: {what}")

    def check_facts(self) -> None:
        """Require that each checker in `REQUIRED_IN_EACH_RUN` has compared a fact.

        Raises:
            Violation: A checker compared none.
        """
        for checker in REQUIRED_IN_EACH_RUN:
            if not self.facts[checker]:
                self._fail(checker, f"judged on nothing: no {CHECKERS[checker]}")

    def state_changed(self, before: State, after: State) -> None:
        """A core took a transition of its table."""
        self.transitions[before, after] += 1


def _has(entries: list[Entry], entry: Entry, end: int) -> bool:
    return len(entries) >= end and entries[end - 1] is entry


class Liveness:
    """Checks that the cell recovers without an operator, and that no failover happens without a fault."""

    BOUND_S = 20.0
    """Recovery time after the last fault ends: the attempt in progress, the longest pause, and one more attempt."""

    @staticmethod
    def check(
        checkers: Checkers, commits_at: Sequence[float], *, healed_at: float, end: float, hold_down_s: float
    ) -> None:
        """Require a commit soon after all faults have ended, and commits until the end of the run.

        Args:
            checkers: The checkers of the run, which count the fact.
            commits_at: Times of the commits that clients know of, ascending.
            healed_at: When the last fault ends, at the latest.
            end: When the run ends.
            hold_down_s: How long rule 17 may delay the next failover.

        Raises:
            Violation: A commit is missing or too late.
        """
        checkers.facts["liveness"] += 1
        first = next((at for at in commits_at if at >= healed_at), None)
        bound_s = Liveness.BOUND_S + hold_down_s
        if first is None or first > healed_at + bound_s:
            when = "never" if first is None else f"at {first:.1f} s"
            raise Violation("liveness", f"all faults ended at {healed_at:.1f} s, the next commit was {when}")
        if commits_at[-1] < end - Liveness.BOUND_S / 2:
            raise Violation(
                "liveness", f"no commit after {commits_at[-1]:.1f} s, all faults ended at {healed_at:.1f} s"
            )

    @staticmethod
    def check_quiet(checkers: Checkers, commits_at: Sequence[float], *, end: float) -> None:
        """Require of a run without a fault that it stays in epoch 1 and commits until its end.

        Raises:
            Violation: A second epoch began, or commits stopped.
        """
        checkers.facts["no failover without a fault"] += 1
        time = next((time for time, record in checkers.records if record.epoch > 1), None)
        if time is not None:
            raise Violation("no failover without a fault", f"epoch 2 began at {time:.1f} s")
        last = commits_at[-1] if commits_at else 0.0
        if last < end - Liveness.BOUND_S / 2:
            raise Violation("liveness", f"no commit after {last:.1f} s, and there was no fault")
