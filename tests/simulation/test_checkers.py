"""Tests each checker of the simulation with events written by hand: valid ones, and one for each text of a violation.

The texts are read from the source, so a test fails if no broken event causes one of them, or if a checker counts no
facts.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from typer.testing import CliRunner

from infra.cli.main import make_app
from infra.simulation import checkers as checkers_module
from infra.simulation import measure
from infra.simulation.campaign import OPTIONAL_CHECKERS, SEEDS_MIN_FOR_QUIET_RUN, Summary, run_seeds
from infra.simulation.checkers import CHECKERS, REQUIRED_IN_EACH_RUN, Checkers, Liveness, Violation
from infra.simulation.member import Member
from infra.simulation.node import Node
from infra.simulation.plans import Fault, FaultPlan
from infra.simulation.runner import Report, Run, run_plan
from infra.simulation.scheduler import Scheduler
from infra.simulation.wal import Entry
from infra.simulation.workload import Workload
from regions.failover.events import Promise, Vote
from regions.failover.heartbeats import SendHeartbeat
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership, Phase, Succession
from regions.position import Position
from tests.infra.objections import arguments_of, public_functions, texts_of, unheard

pytestmark = pytest.mark.simulation

EU, US = RegionName("eu"), RegionName("us")
VOTED_AT = Position(1, 5)


def record(epoch: Epoch, leader: RegionName, phase: Phase = "serving", **more: Any) -> Leadership:
    return Leadership(
        epoch=epoch, leader=leader, phase=phase, fence_id=UUID(int=epoch), reason="", since="", voters=(EU, US), **more
    )


def row(key: int, epoch: Epoch = 1, *, copies: int = 3) -> Entry:
    entry = Entry("row", epoch, key=key)
    entry.copies = copies
    return entry


def fence(epoch: Epoch, *, copies: int = 3) -> Entry:
    entry = Entry("fence", epoch, fence_id=UUID(int=epoch))
    entry.copies = copies
    return entry


class Cell:
    """Two regions as the checkers see them, without real nodes and members."""

    def __init__(self) -> None:
        self.checkers = Checkers(Scheduler(1))
        self.nodes = {region: self._node(region, bit) for region, bit in ((EU, 1), (US, 2))}
        self.checkers.set_nodes(cast("dict[RegionName, Node]", self.nodes))
        self.checkers.record_written(1, record(1, EU))

    @staticmethod
    def _node(region: RegionName, bit: int) -> SimpleNamespace:
        entries: list[Entry] = []

        def has(entry: Entry, end: int) -> bool:
            return len(entries) >= end and entries[end - 1] is entry

        wal = SimpleNamespace(bit=bit, entries=entries, complete_lsn=0, lineage=0, has=has)
        member = SimpleNamespace(region=region, wal=wal, running=True, primary=False, epoch=0)
        return SimpleNamespace(region=region, member=member, disk=Promise(epoch=9))

    def member(self, region: RegionName) -> Member:
        return cast("Member", self.nodes[region].member)

    def node(self, region: RegionName) -> Node:
        return cast("Node", self.nodes[region])

    def holds(self, region: RegionName, *entries: Entry) -> None:
        self.nodes[region].member.wal.entries[:] = entries

    def open(self, region: RegionName, epoch: Epoch, *entries: Entry) -> None:
        self.holds(region, *entries)
        self.checkers.serving_started(self.node(region), epoch)

    def acknowledge(self, entry: Entry, end: int, *, epoch: Epoch = 1) -> None:
        self.checkers.write_acknowledged(self.member(EU), epoch, entry, end)

    def vote(self, epoch: Epoch, *, at: Position = VOTED_AT) -> None:
        vote = Vote(epoch=epoch, position=at, ancestry=())
        gossip = SimpleNamespace(vote=vote)
        beat = SimpleNamespace(heartbeat=SimpleNamespace(cells=[(None, gossip)]))
        self.checkers.heartbeat_sent(self.node(US), cast("SendHeartbeat", beat))

    def store(self, before: Promise | None, after: Promise) -> None:
        self.checkers.promise_stored(self.node(EU), before, after)


def all_is_well(cell: Cell) -> None:
    """Valid events that give each checker a fact to compare."""
    first, second = fence(1), fence(2)
    write, other = row(1), row(2)
    cell.open(EU, 1, first, write)
    cell.acknowledge(write, 2)
    cell.acknowledge(write, 2)
    cell.checkers.strong_read_answered(cell.member(EU), cell.checkers.strong_read_started(), 2)
    cell.vote(2)
    cell.checkers.record_written(2, record(2, US, "recruiting"))
    cell.checkers.record_written(3, record(2, US))
    cell.open(US, 2, first, write, other, second)
    cell.acknowledge(other, 3)
    receive_after_a_vote(cell, epoch=2)
    cell.store(Promise(epoch=1), Promise(epoch=2))
    cell.checkers.effects_returned(cell.node(US), ())
    cell.checkers.check_facts()
    Liveness.check(cell.checkers, [1.0, 59.0], healed_at=58, end=60, hold_down_s=0)
    quiet = Cell()
    Liveness.check_quiet(quiet.checkers, [59.0], end=60)
    cell.checkers.facts.update(quiet.checkers.facts)


def open_twice(cell: Cell) -> None:
    cell.open(EU, 1, fence(1))
    cell.open(US, 1, fence(1))


def acknowledge_after_a_later_opening(cell: Cell) -> None:
    cell.open(US, 2, fence(2))
    cell.acknowledge(row(1), 2)


def acknowledge_two_rows(cell: Cell) -> None:
    cell.acknowledge(row(1), 2)
    cell.acknowledge(row(1), 3)


def open_without_a_write(cell: Cell) -> None:
    cell.acknowledge(row(1), 2)
    cell.open(US, 2, fence(1), fence(2))


def lose_wal_and_vote_with_an_older_position(cell: Cell) -> None:
    cell.nodes[US].member.wal.lineage = 3
    cell.checkers.wal_lost(cell.member(US), 0)
    cell.vote(4, at=Position(2, 5))


def vote_backwards(cell: Cell) -> None:
    cell.vote(3)
    cell.vote(2)


def vote_without_a_promise(cell: Cell) -> None:
    cell.nodes[US].disk = None
    cell.vote(2)


def vote_as_a_primary(cell: Cell) -> None:
    cell.nodes[US].member.primary = True
    cell.vote(2)


def vote_below_its_own_wal(cell: Cell) -> None:
    cell.nodes[US].member.wal.complete_lsn = 6
    cell.vote(2)


def receive_after_a_vote(cell: Cell, *, epoch: Epoch = 1) -> None:
    cell.vote(2)
    source = cell.nodes[EU].member
    source.primary, source.epoch = True, epoch
    cell.checkers.wal_received(cell.member(US), cell.member(EU))


def read_without_a_write(cell: Cell) -> None:
    cell.acknowledge(row(1), 2)
    cell.checkers.strong_read_answered(cell.member(US), cell.checkers.strong_read_started(), 1)


def written(*records: Leadership) -> Callable[[Cell], None]:
    def write(cell: Cell) -> None:
        for revision, one in enumerate(records, 2):
            cell.checkers.record_written(revision, one)

    return write


PROMISED = record(1, EU, succession=Succession(region=EU, reason=""))

BROKEN: dict[str, list[tuple[Callable[[Cell], None], str]]] = {
    "epochs grow": [
        (written(record(2, US), record(1, EU)), "epoch 1 was written over 2"),
        (written(record(1, EU, "recruiting")), "epoch 1 went from serving to recruiting"),
        (written(record(1, US)), "epoch 1 went from eu to us"),
        (written(PROMISED, record(2, US)), "epoch 2 was eu's, and us took it"),
        (written(record(3, US, "recruiting")), "epoch 3 followed 1"),
    ],
    "one epoch acknowledges": [
        (acknowledge_after_a_later_opening, "eu acknowledged 1 under epoch 1 after us had opened epoch 2 without it"),
    ],
    "acknowledged once": [(acknowledge_two_rows, "key 1 was acknowledged as two rows")],
    "applied once": [
        (lambda cell: cell.open(EU, 1, fence(1), row(1), row(1)), "the ledger of eu has a key twice in epoch 1"),
    ],
    "quorum": [
        (lambda cell: cell.checkers.check_facts(), "judged on nothing: no acknowledged writes"),
        (
            lambda cell: cell.acknowledge(row(1, copies=1), 2),
            "1 was acknowledged by eu with 1 copies at voters, 1 in all",
        ),
        (
            lambda cell: cell.acknowledge(row(1, copies=8 | 4), 2),
            "1 was acknowledged by eu with 0 copies at voters, 2 in all",
        ),
    ],
    "acknowledged writes survive": [
        (open_without_a_write, "us opened epoch 2 without 1, acknowledged under 1"),
    ],
    "epochs exclude": [(open_twice, "us and eu both opened epoch 1")],
    "fenced": [
        (lambda cell: cell.open(EU, 1), "eu opened epoch 1 without its fence row on a quorum"),
        (lambda cell: cell.open(EU, 1, fence(1, copies=1)), "eu opened epoch 1 without its fence row on a quorum"),
        (lambda cell: cell.open(EU, 1, fence(2)), "eu opened epoch 1 without its fence row on a quorum"),
    ],
    "promises": [
        (lambda cell: cell.store(Promise(epoch=2), Promise(epoch=1)), "eu replaced Promise(epoch=2"),
        (lambda cell: cell.store(Promise(lineage=2), Promise(epoch=3)), "eu replaced Promise(epoch=0"),
        (lambda cell: cell.store(Promise(floor=2), Promise(epoch=3)), "eu replaced Promise(epoch=0"),
    ],
    "votes": [
        (vote_backwards, "us voted for 2 after 3"),
        (vote_without_a_promise, "us published a vote for 2 that is not on its disk"),
        (lambda cell: cell.vote(10), "us published a vote for 10 that is not on its disk"),
        (lose_wal_and_vote_with_an_older_position, "but lost WAL it had in epoch 3"),
        (vote_as_a_primary, "us votes for 2 while its ledger is primary"),
        (vote_below_its_own_wal, "and has more WAL"),
    ],
    "received after a vote": [(receive_after_a_vote, "us voted for epoch 2 and received WAL of epoch 1")],
    "strong reads": [(read_without_a_write, "us answered as current without an acknowledged write at 2")],
    "invariants": [(lambda cell: cell.checkers.effects_returned(cell.node(EU), ("this", "that")), "eu: this")],
    "liveness": [
        (lambda cell: live(cell, []), "the next commit was never"),
        (lambda cell: live(cell, [9.0, 11.0]), "the next commit was never"),
        (lambda cell: live(cell, [50.0, 59.0]), "the next commit was at 50.0 s"),
        (lambda cell: live(cell, [13.0, 45.0]), "no commit after 45.0 s, all faults ended at 12.0 s"),
        (lambda cell: Liveness.check_quiet(cell.checkers, [], end=60), "no commit after 0.0 s, and there was no fault"),
        (lambda cell: Liveness.check_quiet(cell.checkers, [1.0], end=60), "no commit after 1.0 s, and there was no"),
    ],
    "no failover without a fault": [
        (lambda cell: quiet(cell, record(2, US, "recruiting")), "epoch 2 began at 0.0 s"),
    ],
}


def live(cell: Cell, commits_at: Sequence[float]) -> None:
    Liveness.check(cell.checkers, commits_at, healed_at=12, end=60, hold_down_s=0)


def quiet(cell: Cell, *records: Leadership) -> None:
    written(*records)(cell)
    Liveness.check_quiet(cell.checkers, [59.0], end=60)


def objection(checker: str, broken: Callable[[Cell], None]) -> str:
    cell = Cell()
    with pytest.raises(Violation) as caught:
        broken(cell)
    assert caught.value.checker == checker
    return str(caught.value)


@pytest.mark.parametrize(
    ("checker", "broken", "says"),
    [
        pytest.param(checker, broken, says, id=f"{checker}: {says}")
        for checker, breaks in BROKEN.items()
        for broken, says in breaks
    ],
)
def test_a_checker_rejects_a_broken_event(checker: str, broken: Callable[[Cell], None], says: str) -> None:
    assert says in objection(checker, broken)


def test_every_checker_compares_facts_of_valid_events() -> None:
    cell = Cell()
    all_is_well(cell)
    assert cell.checkers.facts.keys() == CHECKERS.keys()
    assert all(cell.checkers.facts.values())


def receive_from_a_standby(cell: Cell) -> None:
    cell.vote(2)
    cell.checkers.wal_received(cell.member(US), cell.member(EU))


def receive_before_a_vote(cell: Cell) -> None:
    cell.nodes[EU].member.primary = True
    cell.checkers.wal_received(cell.member(US), cell.member(EU))


def open_an_older_epoch(cell: Cell) -> None:
    cell.open(US, 2, fence(2))
    cell.open(EU, 1, fence(1))


COUNTED: list[tuple[Callable[[Cell], None], set[str]]] = [
    (lambda cell: cell.acknowledge(row(1), 2), {"quorum"}),
    (lambda cell: cell.open(EU, 1, fence(1)), {"fenced"}),
    (lambda cell: cell.open(EU, 1, fence(1), row(1)), {"fenced"}),
    (lambda cell: cell.open(EU, 1, fence(1), row(1), row(2)), {"fenced", "applied once"}),
    (open_an_older_epoch, {"fenced"}),
    (lambda cell: cell.store(None, Promise(epoch=1)), set[str]()),
    (lambda cell: cell.store(Promise(epoch=1), Promise(epoch=2)), {"promises"}),
    (lambda cell: cell.vote(2), {"votes"}),
    (receive_from_a_standby, {"votes"}),
    (receive_before_a_vote, set[str]()),
    (lambda cell: receive_after_a_vote(cell, epoch=2), {"votes", "received after a vote"}),
]


@pytest.mark.parametrize(("what", "facts"), COUNTED)
def test_a_checker_counts_only_the_facts_that_it_compared(what: Callable[[Cell], None], facts: set[str]) -> None:
    cell = Cell()
    what(cell)
    assert {name for name, count in cell.checkers.facts.items() if count} == facts


def test_every_checker_and_every_violation_text_has_a_broken_event() -> None:
    arguments = arguments_of(checkers_module, "_fail", "Violation")
    named = {one.value for one in arguments if isinstance(one, ast.Constant)}
    assert named == set(BROKEN) == set(CHECKERS)
    said = [objection(checker, broken) for checker, breaks in BROKEN.items() for broken, _ in breaks]
    patterns = texts_of(arguments)
    assert len(patterns) > 20
    assert unheard(patterns, said) == []


@pytest.mark.parametrize("idle", REQUIRED_IN_EACH_RUN)
def test_a_run_fails_when_a_required_checker_compared_nothing(idle: str) -> None:
    checkers = Cell().checkers
    checkers.facts.update(CHECKERS.keys() - {idle})
    with pytest.raises(Violation, match=f"{idle}: .* judged on nothing: no {CHECKERS[idle]}") as caught:
        checkers.check_facts()
    assert caught.value.checker == idle


@pytest.mark.parametrize("faults", [(), (Fault(at=9.0, kind="clock-jump"),)], ids=["no fault", "a fault"])
def test_a_run_without_a_write_fails(monkeypatch: pytest.MonkeyPatch, faults: tuple[Fault, ...]) -> None:
    plan = FaultPlan(seed=1, seconds=15.0, faults=faults)
    assert run_plan(plan).violation is None

    def idle(_workload: Workload) -> None:
        """Start no client."""

    monkeypatch.setattr(Workload, "start", idle)
    report = run_plan(plan)
    assert (report.commits, report.begun) == (0, 0)
    assert report.violation is not None
    assert "judged on nothing: no acknowledged writes" in report.violation


def sound_report(**changes: Any) -> Report:
    facts = dict.fromkeys(CHECKERS, 1)
    report = Report(plan=FaultPlan(seed=1, seconds=1), commits=1)
    report.facts.update(facts)
    for name, value in changes.items():
        setattr(report, name, value)
    return report


def test_a_campaign_fails_when_a_checker_compared_nothing() -> None:
    for idle in CHECKERS:
        summary = Summary(minutes=1)
        report = sound_report()
        del report.facts[idle]
        for _ in range(SEEDS_MIN_FOR_QUIET_RUN):
            summary.add(report)
        required = idle not in OPTIONAL_CHECKERS
        assert summary.judged_nothing == [f"{idle}: judged on nothing: no {CHECKERS[idle]}"] * required
        assert summary.to_json()["facts"][idle] == 0
    sound, silent = Summary(minutes=1), Summary(minutes=1)
    sound.add(sound_report())
    silent.add(sound_report(commits=0))
    assert sound.judged_nothing == []
    assert silent.judged_nothing == ["no client knows of a commit"]


def test_a_campaign_without_seeds_fails() -> None:
    # A run without a fault is required only of many seeds, which is one line less; the missing commit is one line more.
    assert len(run_seeds([], minutes=1, workers=1).judged_nothing) == len(CHECKERS) - len(OPTIONAL_CHECKERS)


def test_the_command_fails_when_no_run_had_a_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    def calm(_seeds: range, *, minutes: float) -> Summary:
        summary, report = Summary(minutes=minutes), sound_report()
        del report.facts["acknowledged writes survive"]
        summary.add(report)
        return summary

    monkeypatch.setattr("infra.cli.simulate.run_seeds", calm)
    result = CliRunner().invoke(make_app(), ["simulate", "--seeds", "1..2", "--minutes", "1"])
    assert result.exit_code == 1
    survive = "acknowledged writes survive: judged on nothing: no acknowledged writes that a later epoch had to have"
    assert survive in result.output


# Measurements.


NOTHING: dict[str, Callable[[], object]] = {
    "measure_false_suspicions": lambda: measure.measure_false_suspicions(0, stalls=False),
    "measure_detection": lambda: measure.measure_detection(0),
    "measure_takeover": lambda: measure.measure_takeover(0),
}


def test_every_measurement_fails_when_its_event_does_not_occur() -> None:
    assert NOTHING.keys() == public_functions(measure, "dict[str, Any]").keys()
    for measured in NOTHING.values():
        with pytest.raises(measure.MeasuredNothing):
            measured()


def test_a_takeover_that_did_not_occur_or_broke_a_rule_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.measure_takeover(1)["taken_over"] == 1
    sound = Run.run

    def unseen(_checkers: Checkers, _node: Node, _epoch: Epoch) -> None:
        """Observe no takeover."""

    def content(_checkers: Checkers) -> None:
        """Require no facts."""

    def broken(run: Run) -> Report:
        return replace(sound(run), checker="quorum", violation="broken")

    with monkeypatch.context() as patch:
        patch.setattr(Checkers, "serving_started", unseen)
        patch.setattr(Checkers, "check_facts", content)
        with pytest.raises(measure.MeasuredNothing):
            measure.measure_takeover(1)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "run", broken)
        with pytest.raises(measure.MeasuredNothing, match="seed 1: broken"):
            measure.measure_takeover(1)
