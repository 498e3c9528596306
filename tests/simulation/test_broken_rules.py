"""Breaks each rule of failover.md that code can break, and tests that a checker of the simulation detects it.

Without these tests the checkers would prove nothing. A break replaces one small function. Its plan contains the faults
under which the broken rule causes a violation; ``SEEDS_MAX`` bounds how many seeds of the plan are tried.

Rules 10 and 16 have no break. Rule 16: the core cannot read a wall clock (import-linter), and seeds make the clock
jump. Rule 10: a deposed leader mostly learns of the next epoch from a heartbeat before it can read etcd, so seeds
rarely cause a violation; the exploration does (``mutations.py``).
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from infra.simulation import regressions, steps
from infra.simulation.etcd import Etcd
from infra.simulation.member import Member
from infra.simulation.plans import Fault, FaultPlan, draw_plan
from infra.simulation.runner import run_plan
from regions.failover import rules
from regions.failover import steps as choosing
from regions.failover.effects import SetQuorum
from regions.failover.events import LedgerFrozen, MemberState, Promise, Vote
from regions.leadership import Leadership
from regions.position import Position
from tests.simulation.mutations import not_the_drained

pytestmark = pytest.mark.simulation

SEEDS_MAX = 120
SECONDS = 75.0


def any_plan(seed: int) -> FaultPlan:
    return draw_plan(seed, seconds=SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A replacement of one function, which breaks a rule.

    Attributes:
        rule: The number of the rule in failover.md, or a name.
        where: The module or class that has the function.
        name: The name of the function.
        by: The replacement.
        plan: Returns the fault plan for a seed.
    """

    rule: str
    where: Any
    name: str
    by: Callable[..., Any]
    plan: Callable[[int], FaultPlan] = any_plan


def leader_is_away_and_its_ledger_is_not(seed: int) -> FaultPlan:
    """The leader's agent is paused repeatedly while its PostgreSQL continues."""
    faults = tuple(Fault(at=6.0 + 7 * count, kind="pause-agent", target="leader", seconds=2.5) for count in range(5))
    return FaultPlan(seed=seed, seconds=60, faults=faults)


def leader_dies_and_comes_back(seed: int) -> FaultPlan:
    """The leader's region crashes repeatedly, each time just after it was partitioned, so it has rows of its own."""
    faults: list[Fault] = []
    for count in range(6):
        at = 6.0 + 8 * count + seed % 7 / 10
        faults.append(Fault(at=at, kind="isolate-out", target="leader", seconds=0.6))
        faults.append(Fault(at=at + 0.5, kind="crash-region", target="leader", seconds=1.0 + seed % 5 / 3))
    return FaultPlan(seed=seed, seconds=75, faults=tuple(faults))


def the_old_leader_has_more_wal(seed: int) -> FaultPlan:
    """A partitioned leader writes WAL that no standby receives; it is back just when the next leader dies."""
    back = 5.0 + seed % 8 / 8
    faults = (
        Fault(at=6.0, kind="isolate", target="eu", seconds=back),
        Fault(at=10.6, kind="crash-region", target="leader", seconds=8.0),
    )
    return FaultPlan(seed=seed, seconds=60, etcd_leader=2, faults=faults)


def attempts_fail_half_way(seed: int) -> FaultPlan:
    """A leader is lost, and the next one is partitioned as soon as it is promoted, for longer than an attempt takes."""
    faults: list[Fault] = []
    for count in range(4):
        at = 6.0 + 14 * count
        faults.append(Fault(at=at, kind="isolate", target="leader", seconds=5.0))
        cut_at = at + 0.5 + seed % 10 / 20
        faults.append(Fault(at=cut_at, kind="isolate", target="leader", seconds=4.0, when="promoting"))
    return FaultPlan(seed=seed, seconds=80, faults=tuple(faults))


def waits_are_cancelled(seed: int) -> FaultPlan:
    """A leader with rows of its own comes back while no other disk works, and the waiting commits are cancelled."""
    at = 6.0 + seed % 10 / 10
    hangs = tuple(Fault(at=at, kind="hang-disk", target=name, seconds=4.0, when="promoting") for name in ("us", "ap"))
    cancels = tuple(Fault(at=at + 1 + 0.05 * step, kind="cancel-waits", target="eu") for step in range(50))
    faults = (
        Fault(at=at, kind="isolate-out", target="eu", seconds=0.5),
        Fault(at=at + 0.4, kind="kill-ledger", target="eu"),
        *hangs,
        *cancels,
        Fault(at=at + 3.6, kind="crash-region", target="eu", seconds=10.0),
    )
    return FaultPlan(seed=seed, seconds=50, faults=faults)


def commits_are_cancelled(seed: int) -> FaultPlan:
    """No standby's disk works; a commit that waits for them is cancelled, and then the leader's region crashes."""
    at = 6.0 + seed % 10 / 10
    faults = (
        Fault(at=at, kind="hang-disk", target="us", seconds=1.5),
        Fault(at=at, kind="hang-disk", target="ap", seconds=1.5),
        Fault(at=at + 0.2, kind="cancel-waits", target="eu"),
        Fault(at=at + 0.8, kind="crash-region", target="eu", seconds=8.0),
    )
    return FaultPlan(seed=seed, seconds=40, etcd_leader=2, faults=faults)


def the_leader_dies_while_another_is_rewound(seed: int) -> FaultPlan:
    """A partitioned leader has WAL of its own and is rewound from the next leader, which then dies."""
    faults = (
        Fault(at=6.0, kind="isolate", target="eu", seconds=3.0),
        Fault(at=9.5 + seed % 20 / 10, kind="crash-region", target="us", seconds=8.0),
    )
    return FaultPlan(seed=seed, seconds=60, etcd_leader=2, faults=faults)


def the_leader_dies_in_a_switch(seed: int) -> FaultPlan:
    """An operator orders switchovers, and the old leader's region crashes at a different point of each."""
    faults: list[Fault] = []
    for count in range(5):
        at = 6.0 + 10 * count
        faults.append(Fault(at=at, kind="order", order="switch", target="us" if count % 2 == 0 else "eu"))
        dies_at = at + 0.05 + (seed * 7 + count) % 40 / 100
        faults.append(Fault(at=dies_at, kind="crash-region", target="leader", seconds=3.0))
    return FaultPlan(seed=seed, seconds=70, faults=tuple(faults))


def the_leader_dies_in_the_middle_of_a_record(seed: int) -> FaultPlan:
    """A leader crashes repeatedly after it has sent the first part of a record."""
    faults: list[Fault] = []
    for count in range(6):
        at = 6.0 + 8 * count + seed % 9 / 10
        faults.append(Fault(at=at, kind="crash-in-record", target="leader", seconds=4.0, amount=0.3 + seed % 8 / 10))
    return FaultPlan(seed=seed, seconds=75, faults=tuple(faults))


def the_leader_forgets_its_promise(seed: int) -> FaultPlan:
    """A leader crashes, loses its promise, and is back before it is suspected; it sends heartbeats and may not lead."""
    faults = (Fault(at=7.0 + seed % 10 / 10, kind="lose-promise", target="leader", seconds=0.4),)
    return FaultPlan(seed=seed, seconds=50, faults=faults)


def always(value: object) -> Callable[..., object]:
    """A function that always returns ``value``."""

    def answer(*_arguments: object, **_named: object) -> object:
        return value

    return answer


def without_the_epoch(vote: Vote) -> Position:
    return Position(0, vote.position.lsn)


def receive_only(answer: LedgerFrozen) -> Position:
    return Position(max(answer.ancestry, default=0), answer.received or 0)


def only_what_was_replayed(_member: Member, replayed: int) -> int:
    return replayed


def copies_nothing_but_the_absent(ledger: MemberState, _durable: Promise, _record: Leadership) -> bool:
    return ledger.kind == "absent"


def the_next_number(record: Leadership) -> int:
    return record.epoch + 1


def never_stops(ticket: int, epoch: int) -> SetQuorum:
    return SetQuorum(ticket=ticket, epoch=epoch, standbys=(), required=0)


def any_revision(etcd: Etcd, _expected: int, record: Leadership) -> int | None:
    """A swap that does not compare the expected revision."""
    revision = etcd.log[-1][0] + 1 if etcd.log else 1
    etcd.log.append((revision, record))
    etcd.written(revision, record)
    etcd.changed()
    return revision


BREAKS = (
    Break(rule="1", where=rules, name="majority", by=always(1)),
    Break(rule="1", where=rules, name="required_standbys", by=always(0)),
    Break(rule="2", where=rules, name="may_publish", by=always(True)),
    Break(
        rule="3",
        where=rules,
        name="rank",
        by=without_the_epoch,
        plan=the_old_leader_has_more_wal,
    ),
    Break(rule="3", where=choosing, name="choose", by=not_the_drained),
    Break(rule="4", where=rules, name="is_frozen", by=always(True), plan=leader_is_away_and_its_ledger_is_not),
    Break(
        rule="4",
        where=rules,
        name="frozen_position",
        by=receive_only,
    ),
    Break(
        rule="4",
        where=steps,
        name="reported_replay_lsn",
        by=only_what_was_replayed,
        plan=the_leader_dies_in_the_middle_of_a_record,
    ),
    Break(rule="5", where=rules, name="may_promote", by=always(True)),
    Break(rule="6", where=rules, name="demotion", by=never_stops, plan=leader_is_away_and_its_ledger_is_not),
    Break(rule="7", where=rules, name="is_on_quorum", by=always(True), plan=waits_are_cancelled),
    Break(rule="7", where=rules, name="is_settled", by=always(True), plan=commits_are_cancelled),
    Break(rule="7", where=rules, name="is_epoch_over", by=always(False), plan=commits_are_cancelled),
    Break(
        rule="8",
        where=rules,
        name="needs_new_epoch",
        by=always(False),
        plan=leader_dies_and_comes_back,
    ),
    Break(
        rule="11",
        where=rules,
        name="must_copy",
        by=copies_nothing_but_the_absent,
        plan=attempts_fail_half_way,
    ),
    Break(
        rule="12",
        where=rules,
        name="position_counts",
        by=always(True),
        plan=the_leader_dies_while_another_is_rewound,
    ),
    Break(rule="20", where=rules, name="next_epoch", by=the_next_number, plan=the_leader_dies_in_a_switch),
    Break(
        rule="quorum commit", where=rules, name="is_sign_of_life", by=always(True), plan=the_leader_forgets_its_promise
    ),
    Break(rule="CAS", where=Etcd, name="swap", by=any_revision),
)


@contextmanager
def broken(one: Break) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one.where, one.name, one.by)
        yield


def first_violation(one: Break) -> tuple[int, str] | None:
    """The first seed under which the break causes a violation, and the violation; None if no seed does."""
    with broken(one):
        for seed in range(SEEDS_MAX):
            report = run_plan(one.plan(seed))
            if report.violation is not None:
                return seed, report.violation
    return None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("one", BREAKS, ids=lambda one: f"{one.rule}-{one.name}")
def test_a_checker_detects_a_broken_rule(one: Break, record_property: Callable[[str, object], None]) -> None:
    found = first_violation(one)
    assert found is not None, f"no violation in {SEEDS_MAX} seeds"
    record_property("seed", found[0])
    record_property("violation", found[1])


def test_a_plan_detects_a_choice_that_prefers_undrained_regions_to_greater_positions() -> None:
    plan = regressions.load(Path(__file__).parent / "regressions" / "drained-and-ahead.json")
    with broken(Break(rule="3", where=choosing, name="choose", by=not_the_drained)):
        noticed = [run_plan(replace(plan, seed=seed)).violation or "" for seed in range(12)]
    assert all("acknowledged writes survive" in one for one in noticed)


@pytest.mark.parametrize(
    "plan",
    [
        leader_is_away_and_its_ledger_is_not,
        the_old_leader_has_more_wal,
        leader_dies_and_comes_back,
        attempts_fail_half_way,
        waits_are_cancelled,
        commits_are_cancelled,
        the_leader_dies_while_another_is_rewound,
        the_leader_dies_in_a_switch,
        the_leader_dies_in_the_middle_of_a_record,
        the_leader_forgets_its_promise,
    ],
    ids=lambda plan: plan.__name__,
)
def test_the_same_plans_have_no_violation_when_no_rule_is_broken(plan: Callable[[int], FaultPlan]) -> None:
    for seed in range(5):
        assert run_plan(plan(seed)).violation is None
