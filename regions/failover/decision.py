"""What the agent of a region does next for its ledger member, within the region that leads.

Decides one step from what is known, and nothing else: no clock, no I/O, no memory between calls. Whoever
performs the steps may crash at any point and ask again. Refuses to move leadership to another region and
to rejoin a deposed primary: their places are marked by ``Refuse`` below and belong to ``machine.py``.

Source: failover.md; the rules are named where they are enforced.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

from regions.identity import Epoch, RegionName
from regions.leadership import Leadership

DataState = Literal["absent", "primary", "standby"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How the member was last started, from the agent's durable record.

    Attributes:
        role: As what.
        epoch: Under which epoch.
    """

    role: Literal["primary", "standby"]
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything that a decision depends on.

    Attributes:
        region: Whose agent decides.
        first_choice: Whether the region is the most preferred voter.
        leadership: What etcd says; None when it has never said anything.
        data: What the data folder holds.
        running: Whether the member's postmaster runs.
        started: How it was last started; None when never.
        seen_running: Whether this agent has seen it run, so that its end was a crash.
    """

    region: RegionName
    first_choice: bool
    leadership: Leadership | None
    data: DataState
    running: bool
    started: Started | None
    seen_running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """All is as it should be, or somebody else is to act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Nothing may be done by this agent alone; ``reason`` says what is wrong and what would end it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Swap the leadership to ``epoch`` of this region; the first epoch is created."""

    epoch: Epoch
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialise:
    """Make an empty ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPrimary:
    """Start the member as primary of ``epoch``; ``quorum``: with its standbys required from the start."""

    epoch: Epoch
    quorum: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Establish:
    """Prepare the ledger, write the fence row of ``epoch`` under the quorum, and serve."""

    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Take a base backup from ``leader``."""

    leader: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class StartStandby:
    """Start the member as a follower of ``leader``."""

    leader: RegionName
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop the member's PostgreSQL."""

    reason: str


Step = Rest | Refuse | Claim | Initialise | StartPrimary | Establish | Copy | StartStandby | Stop


def decide(situation: Situation) -> Step:
    """Return the next step of a member's agent."""
    leadership = situation.leadership
    if leadership is None:
        return _without_leadership(situation)
    if leadership.leader == situation.region:
        return _as_leader(situation, leadership)
    return _as_follower(situation, leadership)


def _without_leadership(situation: Situation) -> Step:
    if situation.running:
        return Stop(reason="etcd knows no leadership")
    if situation.data != "absent":
        # An etcd that has lost its data must not make a ledger start again at epoch 1.
        return Refuse(reason="there is a ledger but etcd knows no leadership: restore etcd's data")
    if situation.first_choice:
        return Claim(epoch=1, reason="first start")
    return Rest()


def _as_leader(situation: Situation, leadership: Leadership) -> Step:
    if situation.running:
        return _as_running_leader(situation, leadership)
    match situation.data:
        case "absent":
            if leadership.phase == "bootstrapping":
                return Initialise()
            # The place of failover: another member, which has the data, is chosen and promoted.
            return Refuse(reason="the leader's ledger is gone: another region has to take over")
        case "standby":
            # The place of promotion: freeze, compare, promote (machine.py).
            return Refuse(reason="this region leads, but its ledger is a standby: it has to be promoted")
        case "primary":
            return _start_of_leader(situation, leadership)
        case _:
            assert_never(situation.data)


def _as_running_leader(situation: Situation, leadership: Leadership) -> Step:
    started = situation.started
    if started is None or started.role != "primary" or started.epoch != leadership.epoch:
        return Stop(reason=f"it was not started as primary of epoch {leadership.epoch}")
    return Rest() if leadership.phase == "serving" else Establish(epoch=leadership.epoch)


def _start_of_leader(situation: Situation, leadership: Leadership) -> Step:
    if leadership.phase == "bootstrapping":
        # Nothing was ever acknowledged under this epoch, so nothing can become visible that was not.
        return StartPrimary(epoch=leadership.epoch, quorum=False)
    started = situation.started
    was_started = started is not None and started.role == "primary" and started.epoch >= leadership.epoch
    if leadership.phase == "establishing" and not was_started:
        return StartPrimary(epoch=leadership.epoch, quorum=True)
    # Rule 8: a crash makes rows visible that no standby has, so each start has an epoch of its own.
    reason = "its PostgreSQL ended" if situation.seen_running else "the region started again"
    return Claim(epoch=leadership.epoch + 1, reason=reason)


def _as_follower(situation: Situation, leadership: Leadership) -> Step:
    if situation.running:
        if situation.data == "standby":
            return Rest()
        # Rule 6: a primary is demoted by stopping it, never by clearing its quorum.
        return Stop(reason=f"{leadership.leader} leads epoch {leadership.epoch}")
    match situation.data:
        case "absent":
            return Copy(leader=leadership.leader)
        case "standby":
            return StartStandby(leader=leadership.leader, epoch=leadership.epoch)
        case "primary":
            # The place of rejoin: pg_rewind, or a base backup when in doubt (rules 11 to 13).
            return Refuse(reason=f"deposed by epoch {leadership.epoch}: its ledger has to rejoin as a follower")
        case _:
            assert_never(situation.data)
