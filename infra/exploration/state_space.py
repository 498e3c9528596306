"""Models the three regions, etcd and the clients as one immutable state, and checks the invariants of its changes.

A state is a tuple of parts. Equal parts are one object with a number, so a state's canonical form is a few numbers.
This module checks the invariants that concern more than one region: at most one epoch acknowledges, a region that
begins to serve has every acknowledged write, epochs increase, published votes are kept, and a strong read shows every
write that was acknowledged before it arrived.

Followers ``b`` and ``c`` are interchangeable, so a state and its mirror image count as one state: each part knows the
number of its mirror image, and the smaller of the two forms is the canonical one. ``node.py`` explains why ties between
voters do not break this symmetry.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

from infra.exploration import postgres
from infra.exploration.bounds import Bounds, Budget
from infra.exploration.canonical_text import MIRRORED, REGIONS
from infra.exploration.node import Node, NodeInterner, Outcome, Request, Violation, label_violations
from infra.exploration.postgres import Member
from regions.failover.effects import SwapRecord
from regions.failover.events import MemberState, Promise
from regions.identity import RegionName
from regions.leadership import Leadership

Value = TypeVar("Value")

INVARIANTS: Mapping[str, str] = {
    "cores": "cores after an event",
    "records": "records that cores took from etcd",
    "epochs grow": "records that followed another",
    "epochs exclude": "regions that opened writes",
    "acknowledged writes survive": "acknowledged writes that a later epoch had to have when it opened",
    "applied once": "writes that returned",
    "majorities meet": "acknowledgements by those whom the record names",
    "one epoch acknowledges": "epochs that acknowledged after another",
    "votes are durable": "votes that were published",
    "votes are kept": "regions that received WAL after a vote",
    "strong reads": "strong reads that were answered",
}
"""Each invariant, and the facts that it counts."""

_OTHER = (0, 2, 1)
"""The mirror image of each region's number."""

_PART_BITS = 24
"""Bits of one part's number in the canonical form."""


class InternedValue(Generic[Value]):
    """An interned value, with its number and the number of its mirror image."""

    __slots__ = ("mirror", "number", "value")

    def __init__(self, value: Value, number: int) -> None:
        self.value = value
        self.number = number
        self.mirror = number


class Interner(Generic[Value]):
    """Interns the values of one kind, together with their mirror images."""

    def __init__(self, mirrored: Callable[[Value], Value]) -> None:
        self._known: dict[Value, InternedValue[Value]] = {}
        self._mirrored = mirrored

    @property
    def values(self) -> Iterable[Value]:
        """All values that were interned."""
        return self._known.keys()

    def intern(self, value: Value) -> InternedValue[Value]:
        """Return the part with this value; equal values have the same part."""
        part = self._known.get(value)
        if part is None:
            part = self._known[value] = InternedValue(value, len(self._known))
            part.mirror = self.intern(self._mirrored(value)).number
        return part


class Etcd(NamedTuple):
    """The leadership record in etcd.

    Attributes:
        history: The number of each record that was written; record ``n`` (from 1) has revision ``n``.
        unanswered_swaps: (expected revision, number of the record) of each swap that no agent waits for, and that etcd
            may still apply.
    """

    history: tuple[int, ...] = ()
    unanswered_swaps: tuple[tuple[int, int], ...] = ()


class GhostState(NamedTuple):
    """Ghost state: history that the invariants need and that no process knows.

    Attributes:
        acked: The numbers of the acknowledged client requests, ascending.
        epoch: The highest epoch that has acknowledged; 0 for none.
        region: The region that acknowledged in it; -1 for none.
        opened: (epoch, region) of each region that began to serve, ascending.
    """

    acked: tuple[int, ...] = ()
    epoch: int = 0
    region: int = -1
    opened: tuple[tuple[int, int], ...] = ()


class State(NamedTuple):
    """The state of all regions, etcd, the ghost state, and the remaining budget."""

    nodes: tuple[Node, Node, Node]
    members: tuple[InternedValue[Member], InternedValue[Member], InternedValue[Member]]
    etcd: InternedValue[Etcd]
    ghost: InternedValue[GhostState]
    budget: InternedValue[Budget]


Label = tuple[Any, ...]
"""What happened: a verb, the region, and details. ``transcript.py`` writes it as a line."""

Move = tuple[Label, State]


class StateSpace:
    """The interned parts of an exploration's states, and the changes of states.

    Attributes:
        bounds: The bounds of the current search.
        first_write: The highest number of a client request before the current search.
        facts: How many facts each invariant compared.
        nodes: All agents.
        members: All members.
        etcds: All histories of the record.
        ghosts: All ghost states.
        budgets: All remaining budgets.
        records: All leadership records; a record's number is its index.
        outcomes: The result of each event for a node, by node and label.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.first_write = 0
        self.facts: Counter[str] = Counter()
        self.nodes = NodeInterner()
        self.members = Interner(_mirrored_member)
        self.etcds = Interner(self._mirrored_etcd)
        self.ghosts = Interner(_mirrored_ghost)
        self.budgets: Interner[Budget] = Interner(lambda budget: budget)
        self.records: list[Leadership] = []
        self._record_numbers: dict[tuple[Any, ...], int] = {}
        self._changed: dict[tuple[Any, ...], Node] = {}
        self.outcomes: dict[tuple[Any, ...], Outcome] = {}

    def initial(self) -> State:
        """The state before any agent was started."""
        blank = Node(machine=None, disk=Promise())
        a, b, c = (self.nodes.intern(blank, region) for region in range(len(REGIONS)))
        absent = self.members.intern(postgres.ABSENT)
        return State(
            nodes=(a, b, c), members=(absent, absent, absent), etcd=self.etcds.intern(Etcd()),
            ghost=self.ghosts.intern(GhostState()), budget=self.budgets.intern(self.bounds.budget),
        )  # fmt: skip

    def canonical(self, state: State) -> int:
        """The canonical form of a state: equal for a state and its mirror image, different for all others."""
        (a, b, c), (ma, mb, mc), *rest = state
        plain = [a.number, b.number, c.number, ma.number, mb.number, mc.number]
        other = [a.mirror, c.mirror, b.mirror, ma.mirror, mc.mirror, mb.mirror]
        plain += [part.number for part in rest]
        other += [part.mirror for part in rest]
        number = 0
        for part in min(plain, other):
            number = number << _PART_BITS | part
        return number

    # Changes.

    def record(self, number: int) -> Leadership:
        """The record with this number."""
        return self.records[number]

    def record_number(self, record: Leadership) -> int:
        """The number of a record. Its reason, time, fence id and the order of its voters make no difference."""
        promised = None if record.succession is None else record.succession.region
        key = (
            record.epoch, record.leader, record.phase, record.ancestry, record.target, record.automatic,
            promised, record.handed_over_at, frozenset(record.voters), frozenset(record.drained), record.joining,
        )  # fmt: skip
        if key not in self._record_numbers:
            self._record_numbers[key] = len(self.records)
            voters, drained = tuple(sorted(record.voters)), tuple(sorted(record.drained))
            self.records.append(replace(record, reason="", since="", voters=voters, drained=drained))
        return self._record_numbers[key]

    def with_node(self, state: State, region: int, **changes: Any) -> State:  # noqa: ANN401 - fields of a Node
        """The state with some fields of a region's node changed."""
        node = state.nodes[region]
        key = (node.number, *changes.items())
        changed = self._changed.get(key)
        if changed is None:
            changed = self._changed[key] = self.nodes.intern(replace(node, **changes), region)
        return state._replace(nodes=with_part(state.nodes, region, changed))

    def with_member(self, state: State, region: int, member: Member) -> State:
        """The state with a region's member replaced; if it is a primary, commits that have a quorum return."""
        state = state._replace(members=with_part(state.members, region, self.members.intern(member)))
        return self._commit(state, region) if member.kind == "primary" else state

    def with_request(self, state: State, region: int, old: Request, new: Request | None) -> State:
        """The state with a request of a region's node replaced, or removed if ``new`` is None."""
        node = state.nodes[region]
        rest = tuple(one for one in node.requests if one is not old)
        return self.with_node(state, region, requests=rest if new is None else (*rest, new))

    def swapped(self, state: State, swap: tuple[int, int]) -> State | None:
        """The state after etcd applied a swap; None if etcd rejected it.

        Raises:
            Violation: The new record must not follow the old one.
        """
        history = state.etcd.value.history
        if not self.revision_matches(swap[0], len(history)):
            return None
        new = self.record(swap[1])
        old = self.record(history[-1]) if history else None
        self.facts["epochs grow"] += old is not None
        if old is not None and not _may_follow(old, new):
            raise Violation(
                f"epoch {old.epoch} ({old.leader} {old.phase}) is followed by epoch {new.epoch} "
                f"({new.leader} {new.phase})"
            )
        return state._replace(etcd=self.etcds.intern(Etcd(history=(*history, swap[1]))))

    def revision_matches(self, expected: int, revision: int) -> bool:
        """Whether etcd applies a swap: the revision is the expected one."""
        return expected == revision

    def apply_event(self, state: State, region: int, label: Label, how: Callable[[Node], Outcome]) -> Iterator[Move]:
        """Let a node handle an event; yields nothing if the result exceeds the bounds.

        The result is computed once for each node and label, so the label must determine it together with the node.

        Raises:
            Violation: An invariant does not hold.
        """
        node = state.nodes[region]
        key = (node.number, *label)
        with label_violations(label):
            outcome = self.outcomes.get(key)
            if outcome is None:
                outcome = self.outcomes[key] = self._known(how(node), region)
                self.facts["cores"] += 1
                self.facts["votes are durable"] += outcome.node.voted_epoch > 0
            self._check_known_record(state, outcome.node, region)
            after = self._state_after(state, region, outcome)
        for made in (outcome.node, outcome.tie_alternative):
            if made is not None and not self._exceeds_bounds(made):
                yield label, after._replace(nodes=with_part(after.nodes, region, made))

    def _known(self, outcome: Outcome, region: int) -> Outcome:
        tie_alternative = (
            None if outcome.tie_alternative is None else self.nodes.intern(outcome.tie_alternative, region)
        )
        return outcome._replace(node=self.nodes.intern(outcome.node, region), tie_alternative=tie_alternative)

    def _exceeds_bounds(self, node: Node) -> bool:
        return any(
            isinstance(one.effect, SwapRecord) and one.effect.record.epoch > self.bounds.epochs_max
            for one in node.requests
        )

    def _state_after(self, state: State, region: int, outcome: Outcome) -> State:
        wal = state.members[region].value
        if outcome.served_epoch:
            state = self._start_serving(state, region, outcome.served_epoch)
        if outcome.current_reads and state.nodes[region].owed_writes is not None:
            self.facts["strong reads"] += 1
            missing = [one for one in state.nodes[region].owed_writes or () if not postgres.has_row(wal, "write", one)]
            if missing:
                raise Violation(f"a strong read at {REGIONS[region]} does not show write {missing[0]}")
        if outcome.unanswered_swap is not None:
            swap = (outcome.unanswered_swap.expected_revision, self.record_number(outcome.unanswered_swap.record))
            etcd = state.etcd.value
            if swap[0] == len(etcd.history) and swap not in etcd.unanswered_swaps:
                state = state._replace(
                    etcd=self.etcds.intern(
                        etcd._replace(unanswered_swaps=tuple(sorted((*etcd.unanswered_swaps, swap))))
                    )
                )
        return state

    # Invariants.

    def _check_known_record(self, state: State, node: Node, region: int) -> None:
        """Require that the record that a core knows for a revision is etcd's record of that revision (rule 9)."""
        if node.machine is None or node.machine.facts.etcd.record is None:
            return
        self.facts["records"] += 1
        known, revision = node.machine.facts.etcd.record, node.machine.facts.etcd.revision
        history = state.etcd.value.history
        stored = self.records[history[revision - 1]] if revision <= len(history) else None
        if stored is None or (stored.epoch, stored.phase, stored.leader) != (known.epoch, known.phase, known.leader):
            raise Violation(
                f"{REGIONS[region]} takes epoch {known.epoch} ({known.leader} {known.phase}) for revision {revision}, "
                "and etcd holds another"
            )

    def _start_serving(self, state: State, region: int, epoch: int) -> State:
        ghost, member = state.ghost.value, state.members[region].value
        self.facts["epochs exclude"] += 1
        before = dict(ghost.opened).get(epoch, region)
        if before != region:
            raise Violation(f"{REGIONS[region]} opens writes under epoch {epoch}, and {REGIONS[before]} did")
        if ghost.epoch > epoch:
            # A later epoch has acknowledged already, and its writes need not be here. `acknowledged` checks that this
            # epoch acknowledges nothing.
            return state
        if epoch > 1:
            self.facts["acknowledged writes survive"] += len(ghost.acked)
        lost = [one for one in ghost.acked if not postgres.has_row(member, "write", one)]
        if lost:
            raise Violation(f"write {lost[0]} was acknowledged, and {REGIONS[region]} opens epoch {epoch} without it")
        opened = tuple(sorted({*ghost.opened, (epoch, region)}))
        return state._replace(ghost=self.ghosts.intern(ghost._replace(opened=opened)))

    def _commit(self, state: State, region: int) -> State:
        """Let the commits of a primary return that have a quorum, and check that they may."""
        member = state.members[region].value
        until = postgres.quorum_lsn(member)
        if until <= member.confirmed:
            return state
        returned = member.wal[member.confirmed : until]
        member = self.members.intern(member._replace(confirmed=until))
        state = state._replace(members=with_part(state.members, region, member))
        writes = [entry.number for entry in returned if entry.kind == "write"]
        self.facts["applied once"] += len(writes)
        twice = [one for one in writes if sum(entry[1:3] == ("write", one) for entry in member.value.wal) > 1]
        if twice:
            raise Violation(f"write {twice[0]} was applied twice at {REGIONS[region]}")
        return self.acknowledged(state, region, writes) if any(one.kind != "promotion" for one in returned) else state

    def acknowledged(self, state: State, region: int, writes: Iterable[int]) -> State:
        """The state after a primary has acknowledged writes to clients, or its fence row to its agent.

        Raises:
            Violation: Another region has acknowledged in this or in a later epoch.
        """
        ghost, epoch = state.ghost.value, state.members[region].value.epoch
        self.facts["one epoch acknowledges"] += 0 < ghost.epoch != epoch
        if (epoch, region) != (ghost.epoch, ghost.region) and epoch <= ghost.epoch:
            raise Violation(
                f"{REGIONS[region]} acknowledges under epoch {epoch}, "
                f"and {REGIONS[ghost.region]} has acknowledged under epoch {ghost.epoch}"
            )
        self._check_majorities(state, region)
        acked = tuple(sorted({*ghost.acked, *writes}))
        return state._replace(ghost=self.ghosts.intern(ghost._replace(acked=acked, epoch=epoch, region=region)))

    def _check_majorities(self, state: State, region: int) -> None:
        """Require that the quorum and the record's voters differ by one region at most, so majorities intersect."""
        member, history = state.members[region].value, state.etcd.value.history
        record = self.records[history[-1]]
        if not member.standby_names or record.epoch != member.epoch:
            return
        self.facts["majorities meet"] += 1
        waited = {REGIONS[one] for one in (region, *member.standby_names)}
        if len(waited ^ set(record.voters)) > 1:
            raise Violation(
                f"{REGIONS[region]} acknowledges to a majority of {' '.join(sorted(waited))}, "
                f"and the voters are {' '.join(record.voters)}"
            )

    # Mirror images.

    def _mirrored_etcd(self, etcd: Etcd) -> Etcd:
        return Etcd(
            history=tuple(self._mirrored_record(one) for one in etcd.history),
            unanswered_swaps=tuple(
                sorted((expected, self._mirrored_record(one)) for expected, one in etcd.unanswered_swaps)
            ),
        )

    def _mirrored_record(self, number: int) -> int:
        record = self.record(number)
        changes: dict[str, Any] = {"leader": RegionName(MIRRORED[record.leader])}
        if record.target is not None:
            changes["target"] = RegionName(MIRRORED[record.target])
        if record.succession is not None:
            region = RegionName(MIRRORED[record.succession.region])
            changes["succession"] = replace(record.succession, region=region)
        for name in ("voters", "joining", "drained"):
            changes[name] = tuple(RegionName(MIRRORED[one]) for one in getattr(record, name))
        return self.record_number(replace(record, **changes))


_PHASES = ("bootstrapping", "recruiting", "promoting", "serving")


def _may_follow(old: Leadership, new: Leadership) -> bool:
    """Whether one record may follow another: epochs increase, and an epoch goes through its phases in order.

    A promised epoch belongs to the successor, which need not recruit; another region has to skip it. Only a serving
    leader changes the voters, one at a time. The drained voters may change at any time.
    """
    if set(new.voters) != set(old.voters) and not _resizes(old, new):
        return False
    if new.epoch != old.epoch:
        if old.succession is not None and new.epoch == old.epoch + 1:
            return new.leader == old.succession.region and new.handed_over_at is not None
        return new.phase == "recruiting" and new.epoch == old.epoch + (1 if old.succession is None else 2)
    if new.phase == old.phase == "serving":
        return new.leader == old.leader
    if new.phase == old.phase:
        return new == replace(old, drained=new.drained)
    forward = _PHASES.index(new.phase) > _PHASES.index(old.phase)
    return forward and (new.leader == old.leader or new.phase == "promoting")


def _resizes(old: Leadership, new: Leadership) -> bool:
    serves = (old.epoch, old.phase) == (new.epoch, new.phase) == (old.epoch, "serving")
    return serves and len(set(old.voters) ^ set(new.voters)) == 1


def idle_invariants(facts: Counter[str], budget: Budget) -> list[str]:
    """One line for each invariant that compared no fact; a search with such a line has failed.

    A search without a second epoch therefore fails. Without strong reads in the budget none are required.
    """
    wanted = [name for name in INVARIANTS if budget.reads or name != "strong reads"]
    return [f"{name}: judged on nothing: no {INVARIANTS[name]}" for name in wanted if not facts[name]]


def member_state(member: Member) -> MemberState:
    """The state of this member that a driver reports to an agent that starts."""
    if member.kind == "standby":
        return (
            MemberState(kind="frozen")
            if member.source is None
            else MemberState(kind="following", epoch=member.epoch)
        )  # fmt: skip
    return MemberState(kind=member.kind, epoch=member.epoch if member.kind == "primary" else 0)


def with_part(parts: tuple[Value, Value, Value], region: int, part: Value) -> tuple[Value, Value, Value]:
    """The three parts with that of ``region`` replaced."""
    first, second, third = parts
    return (
        (part, second, third) if region == 0 else (first, part, third) if region == 1 else (first, second, part)
    )  # fmt: skip


def _mirrored_member(member: Member) -> Member:
    first, second, third = member.acks
    return member._replace(
        wal=tuple(entry._replace(by=_OTHER[entry.by]) for entry in member.wal),
        source=None if member.source is None else _OTHER[member.source],
        standby_names=tuple(sorted(_OTHER[one] for one in member.standby_names)),
        acks=(first, third, second),
    )


def _mirrored_ghost(ghost: GhostState) -> GhostState:
    return ghost._replace(
        region=ghost.region if ghost.region < 0 else _OTHER[ghost.region],
        opened=tuple(sorted((epoch, _OTHER[region]) for epoch, region in ghost.opened)),
    )
