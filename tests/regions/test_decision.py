"""What an agent does next, decided from every situation it can be in."""

import itertools
from dataclasses import replace
from uuid import UUID

import pytest

from regions.failover.decision import (
    Claim,
    Copy,
    DataState,
    Establish,
    Initialise,
    Refuse,
    Rest,
    Situation,
    Started,
    StartPrimary,
    StartStandby,
    Step,
    Stop,
    decide,
)
from regions.identity import RegionName
from regions.leadership import Leadership, Phase

EAST, WEST = RegionName("us-east"), RegionName("eu-west")


def leadership(epoch: int = 1, phase: Phase = "serving", leader: RegionName = EAST) -> Leadership:
    return Leadership(
        epoch=epoch,
        leader=leader,
        phase=phase,
        fence_id=UUID(int=epoch) if phase == "serving" else None,
        reason="",
        since="",
    )


ABSENT = Situation(
    region=EAST,
    first_choice=True,
    leadership=None,
    data="absent",
    running=False,
    started=None,
    seen_running=False,
)


def situation(
    record: Leadership | None,
    data: DataState = "absent",
    *,
    running: bool = False,
    started: Started | None = None,
    first: bool = True,
) -> Situation:
    return replace(ABSENT, leadership=record, data=data, running=running, started=started, first_choice=first)


def primary(epoch: int) -> Started:
    return Started(role="primary", epoch=epoch)


STANDBY = Started(role="standby", epoch=1)


@pytest.mark.parametrize(
    ("known", "step"),
    [
        # First start.
        (situation(None), Claim(epoch=1, reason="first start")),
        (situation(None, first=False), Rest()),
        (situation(leadership(1, "bootstrapping")), Initialise()),
        (situation(leadership(1, "bootstrapping"), "primary"), StartPrimary(epoch=1, quorum=False)),
        (
            situation(leadership(1, "bootstrapping"), "primary", started=primary(1)),
            StartPrimary(epoch=1, quorum=False),
        ),
        (
            situation(leadership(1, "bootstrapping"), "primary", running=True, started=primary(1)),
            Establish(epoch=1),
        ),
        # Serving, and the agent started again beside the running postmaster.
        (situation(leadership(3), "primary", running=True, started=primary(3)), Rest()),
        # A crash: a new epoch, claimed before the start and used for one start only.
        (
            situation(leadership(3), "primary", started=primary(3)),
            Claim(epoch=4, reason="the region started again"),
        ),
        (
            situation(leadership(4, "establishing"), "primary", started=primary(3)),
            StartPrimary(epoch=4, quorum=True),
        ),
        (
            situation(leadership(4, "establishing"), "primary", started=primary(4)),
            Claim(epoch=5, reason="the region started again"),
        ),
        (
            situation(leadership(4, "establishing"), "primary", running=True, started=primary(4)),
            Establish(epoch=4),
        ),
        # Followers.
        (situation(leadership(1, leader=WEST)), Copy(leader=WEST)),
        (
            situation(leadership(2, leader=WEST), "standby", started=STANDBY),
            StartStandby(leader=WEST, epoch=2),
        ),
        (situation(leadership(2, leader=WEST), "standby", running=True, started=STANDBY), Rest()),
    ],
)
def test_next_step(known: Situation, step: Step) -> None:
    assert decide(known) == step


def test_crash_that_was_seen_is_named_as_the_reason() -> None:
    crashed = replace(situation(leadership(3), "primary", started=primary(3)), seen_running=True)
    assert decide(crashed) == Claim(epoch=4, reason="its PostgreSQL ended")


@pytest.mark.parametrize(
    "known",
    [
        situation(None, "primary", started=primary(7)),
        situation(leadership(3), "absent"),
        situation(leadership(3), "standby", started=STANDBY),
        situation(leadership(3, leader=WEST), "primary", started=primary(2)),
    ],
)
def test_what_only_others_can_mend_is_refused_with_a_reason(known: Situation) -> None:
    step = decide(known)
    assert isinstance(step, Refuse)
    assert step.reason


@pytest.mark.parametrize(
    "known",
    [
        situation(None, "primary", running=True, started=primary(1)),
        situation(leadership(3), "primary", running=True, started=primary(2)),
        situation(leadership(3), "primary", running=True),
        situation(leadership(3), "standby", running=True, started=STANDBY),
        situation(leadership(3, leader=WEST), "primary", running=True, started=primary(2)),
    ],
)
def test_a_postgres_that_must_not_run_is_stopped(known: Situation) -> None:
    assert isinstance(decide(known), Stop)


def every_situation() -> list[Situation]:
    records = [None] + [
        leadership(epoch, phase, leader)
        for epoch in (1, 2)
        for phase in ("bootstrapping", "establishing", "serving")
        for leader in (EAST, WEST)
    ]
    starts = [None, primary(1), primary(2), STANDBY]
    data: tuple[DataState, ...] = ("absent", "primary", "standby")
    return [
        situation(record, state, running=running, started=started, first=first)
        for record, state, running, started, first in itertools.product(
            records, data, (False, True), starts, (False, True)
        )
    ]


def test_rules_hold_in_every_situation() -> None:
    for known in every_situation():
        step = decide(known)
        record = known.leadership
        if isinstance(step, StartPrimary):
            assert record is not None
            assert record.leader == known.region
            assert step.epoch == record.epoch
            # Rule 8: no second start as primary under an epoch that may have acknowledged something.
            assert record.phase == "bootstrapping" or known.started != primary(record.epoch)
            assert step.quorum or record.phase == "bootstrapping"
        if isinstance(step, Claim):
            assert step.epoch == (1 if record is None else record.epoch + 1)
            assert record is None or record.leader == known.region
            assert not known.running
        if isinstance(step, Establish):
            assert record is not None
            assert (record.leader, known.running, known.started) == (known.region, True, primary(record.epoch))
        if isinstance(step, Initialise | Copy):
            assert known.data == "absent"
            assert not known.running
        if isinstance(step, Rest) and known.running and known.data == "primary":
            assert record is not None
            assert (record.leader, known.started) == (known.region, primary(record.epoch))
