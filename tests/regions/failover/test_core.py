"""Tests of the core of an agent: which heartbeats count, when it suspects a region, when it sends heartbeats."""

from dataclasses import replace
from uuid import UUID

import pytest

from regions.failover.core import TICKETS_AN_INCARNATION, CellMonitor, FailoverCore
from regions.failover.effects import Log, ReadRecord, StartServing, StopServing
from regions.failover.events import (
    Event,
    Gossip,
    LedgerDone,
    LedgerEnded,
    MemberState,
    Promise,
    QuorumCommit,
    RecordRead,
    RecordSeen,
    Started,
    SuspicionChanged,
    Tick,
)
from regions.failover.heartbeats import (
    AgentEffect,
    CellEffect,
    CellEvent,
    Heartbeat,
    HeartbeatReceived,
    LedgerRefused,
    ReadCommit,
    SendHeartbeat,
)
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import CellId, RegionName
from regions.leadership import Leadership

A, B, C = (RegionName(name) for name in ("us-east", "eu-west", "ap-south"))
MAIN, OTHER = CellId("main"), CellId("other")
VOTERS = (A, B, C)
BEAT_S = DEFAULTS.heartbeat_interval_s
PATIENCE_S = 1.081


class Driver:
    """A core, its clock, and the effects of the last event."""

    def __init__(self, region: RegionName, *cells: CellId, incarnation: int = 1) -> None:
        self.core = FailoverCore(
            region=region,
            incarnation=incarnation,
            cells={cell: CellRegions(voters=VOTERS, regions=VOTERS) for cell in cells},
        )
        self.now = 0.0
        self.effects: list[AgentEffect] = []
        self.beats: dict[RegionName, int] = {}

    def handle(self, event: Event, cell: CellId = MAIN) -> None:
        self.effects = self.core.handle(CellEvent(cell=cell, event=event), now=self.now)

    def start(self, cell: CellId, *, leader: RegionName, region: RegionName) -> None:
        """Start the agent of ``region`` in a cell that ``leader`` leads."""
        found = MemberState(kind="primary" if leader == region else "following", epoch=1)
        self.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=found), cell)
        ticket = self.requested(ReadRecord).ticket
        self.handle(RecordRead(ticket=ticket, revision=1, record=record(leader)), cell)

    def hear(
        self,
        sender: RegionName,
        *,
        commit: int = 0,
        incarnation: int = 1,
        sequence: int | None = None,
        suspects: int = 0,
        cells: tuple[CellId, ...] = (MAIN,),
    ) -> None:
        self.beats[sender] = self.beats.get(sender, 0) + 1 if sequence is None else sequence
        gossip = Gossip(epoch=1, commit=commit, suspects=suspects)
        heartbeat = Heartbeat(
            sender=sender,
            incarnation=incarnation,
            sequence=self.beats[sender],
            cells=tuple((cell, gossip) for cell in cells),
        )
        self.effects = self.core.handle(HeartbeatReceived(heartbeat=heartbeat), now=self.now)

    def refuse_connection(self, region: RegionName) -> None:
        self.effects = self.core.handle(LedgerRefused(cell=MAIN, region=region), now=self.now)

    def run(self, seconds: float, *, hearing: tuple[RegionName, ...] = (), commits: bool = False) -> None:
        """Send ``Tick`` at each deadline, and a heartbeat of each region in ``hearing`` at each interval."""
        until = self.now + seconds
        collected: list[AgentEffect] = []
        next_hearing, commit = self.now, int(self.now * 1000)
        while True:
            due = self.core.next_deadline()
            assert due is not None
            self.now = max(self.now, min(due, next_hearing))
            if self.now > until:
                break
            if self.now >= next_hearing:
                next_hearing += BEAT_S
                for region in hearing:
                    commit += 1
                    self.hear(region, commit=commit if commits else 0)
                    collected += self.effects
            self.handle(Tick())
            collected += self.effects
        self.now, self.effects = until, collected

    def requested(self, kind: type[ReadRecord]) -> ReadRecord:
        return next(one.effect for one in self.effects if isinstance(one, CellEffect) and isinstance(one.effect, kind))

    def sent(self) -> list[Heartbeat]:
        return [one.heartbeat for one in self.effects if isinstance(one, SendHeartbeat)]

    def logged(self, text: str) -> bool:
        collected = [one.effect for one in self.effects if isinstance(one, CellEffect)]
        return any(isinstance(one, Log) and text in one.text for one in collected)

    def suspected(self, cell: CellId = MAIN) -> frozenset[RegionName]:
        return self.core.machines[cell].facts.peers.suspected


def record(leader: RegionName = A) -> Leadership:
    return Leadership(
        epoch=1,
        leader=leader,
        phase="serving",
        fence_id=UUID(int=1),
        reason="first start",
        since="",
        voters=VOTERS,
        ancestry=(1,),
    )


@pytest.fixture
def follower() -> Driver:
    driver = Driver(B, MAIN)
    driver.start(MAIN, leader=A, region=B)
    return driver


@pytest.fixture
def leader() -> Driver:
    driver = Driver(A, MAIN)
    driver.start(MAIN, leader=A, region=A)
    return driver


def test_a_core_has_no_deadline_and_ignores_heartbeats_before_the_start() -> None:
    driver = Driver(B, MAIN)
    assert driver.core.next_deadline() is None
    driver.hear(A)
    assert driver.effects == []


def test_heartbeats_keep_their_interval_and_go_to_all_other_regions(follower: Driver) -> None:
    follower.run(1.0)
    sent = [one for one in follower.effects if isinstance(one, SendHeartbeat)]
    assert {one.to for one in sent} == {A, C}
    to_one = [one.heartbeat for one in sent if one.to == A]
    # Ten at the interval, and at most one more for a change of the gossip: no other region was heard.
    assert 10 <= len(to_one) <= 11
    assert [one.sequence for one in to_one] == sorted({one.sequence for one in to_one})


def test_a_missed_heartbeat_is_not_sent_later(follower: Driver) -> None:
    follower.now = 10.0
    follower.handle(Tick())
    assert len({one.sequence for one in follower.sent()}) == 1
    due = follower.core.next_deadline()
    assert due is not None
    assert due >= 10.0


def test_a_change_of_the_gossip_is_sent_at_once(follower: Driver) -> None:
    follower.run(1.05, hearing=(C,))
    # The suspicion of us-east begins between two heartbeats.
    follower.now = 1.085
    follower.handle(Tick())
    assert [dict(one.cells)[MAIN].suspects for one in follower.sent()] == [1, 1]


def test_a_leader_is_suspected_when_its_heartbeats_report_no_newer_commit(follower: Driver) -> None:
    follower.run(3.0, hearing=(A, C), commits=True)
    assert follower.suspected() == frozenset()
    follower.run(1.2, hearing=(A, C))
    assert follower.suspected() == {A}


def test_a_suspicion_ends_when_the_leader_reports_a_newer_commit(follower: Driver) -> None:
    follower.run(1.2, hearing=(C,))
    assert follower.suspected() == {A}
    follower.hear(A, commit=10**6)
    assert follower.suspected() == frozenset()


def test_a_leader_whose_ledger_refuses_connections_is_suspected_sooner(follower: Driver) -> None:
    follower.run(3.0, hearing=(A, C), commits=True)
    follower.run(0.3, hearing=(C,))
    follower.refuse_connection(A)
    assert follower.suspected() == frozenset(), "a heartbeat may be under way"
    follower.run(0.3, hearing=(C,))
    assert follower.suspected() == {A}


def test_a_newer_commit_after_a_refusal_restores_the_full_timeout(follower: Driver) -> None:
    follower.run(3.0, hearing=(A, C), commits=True)
    follower.run(0.3, hearing=(C,))
    follower.refuse_connection(A)
    follower.hear(A, commit=10**6)
    follower.run(0.9, hearing=(C,))
    assert follower.suspected() == frozenset()


def test_a_refusal_is_ignored_when_no_other_region_is_heard(follower: Driver) -> None:
    follower.run(3.0, hearing=(A, C), commits=True)
    follower.run(0.4)
    follower.refuse_connection(A)
    follower.run(0.4)
    assert follower.suspected() == frozenset(), "the own network may have failed"


def test_a_refusal_by_a_region_that_does_not_lead_is_ignored(follower: Driver) -> None:
    follower.run(3.0, hearing=(A, C), commits=True)
    follower.run(0.3, hearing=(A,), commits=True)
    follower.refuse_connection(C)
    follower.run(0.5, hearing=(A,), commits=True)
    assert C not in follower.suspected()


def test_a_region_that_does_not_lead_is_not_suspected_without_commits(follower: Driver) -> None:
    follower.run(5.0, hearing=(C,))
    assert C not in follower.suspected()


def test_one_suspecting_region_is_not_enough_and_two_are(follower: Driver) -> None:
    follower.run(1.2, hearing=(C,))
    assert not follower.logged("and others agree")
    follower.hear(C, suspects=1)
    assert follower.logged("us-east is silent, and others agree")


def test_a_duplicate_or_reordered_heartbeat_is_ignored(follower: Driver) -> None:
    follower.hear(A, commit=5, sequence=9)
    before = follower.core.phi(MAIN, A, now=1.0)
    follower.run(0.5)
    follower.hear(A, commit=6, sequence=9)
    follower.hear(A, commit=7, sequence=8)
    assert follower.core.phi(MAIN, A, now=1.0) == before
    follower.hear(A, commit=8, sequence=10)
    assert follower.core.phi(MAIN, A, now=1.0) < before


def test_a_heartbeat_of_an_older_incarnation_is_ignored(follower: Driver) -> None:
    follower.hear(A, commit=5, incarnation=2, sequence=1)
    before = follower.core.phi(MAIN, A, now=1.0)
    follower.run(0.5)
    follower.hear(A, commit=50, incarnation=1, sequence=99)
    assert follower.core.phi(MAIN, A, now=1.0) == before


def test_a_new_incarnation_restarts_its_sequence_and_still_has_to_report_a_commit(follower: Driver) -> None:
    follower.hear(A, commit=5, incarnation=1, sequence=99)
    follower.run(0.9, hearing=(C,))
    follower.hear(A, incarnation=2, sequence=1)
    follower.run(0.3, hearing=(C,))
    assert A in follower.suspected()


def test_heartbeats_of_the_own_region_and_of_unknown_regions_are_ignored(follower: Driver) -> None:
    follower.hear(B, suspects=1)
    follower.hear(RegionName("mars"), suspects=1)
    assert follower.core.machines[MAIN].facts.peers.gossip == {}


def test_gossip_about_a_cell_that_the_agent_does_not_have_is_ignored(follower: Driver) -> None:
    follower.hear(A, commit=5, cells=(OTHER, MAIN))
    assert set(follower.core.machines[MAIN].facts.peers.gossip) == {A}


def test_only_a_leader_reads_its_newest_commit(leader: Driver, follower: Driver) -> None:
    leader.run(0.5)
    follower.run(0.5)
    assert leader.effects.count(ReadCommit(cell=MAIN)) >= 5
    assert ReadCommit(cell=MAIN) not in follower.effects


def test_a_leader_reports_its_newest_commit_and_never_an_older_one(leader: Driver) -> None:
    leader.handle(QuorumCommit(lsn=70))
    leader.handle(QuorumCommit(lsn=60))
    leader.run(0.2)
    assert dict(leader.sent()[-1].cells)[MAIN].commit == 70


def test_a_leader_whose_postgresql_ended_reports_no_commit(leader: Driver) -> None:
    leader.handle(QuorumCommit(lsn=70))
    leader.handle(LedgerEnded())
    assert CellEffect(cell=MAIN, effect=StopServing(epoch=1)) in leader.effects
    leader.run(0.2)
    assert dict(leader.sent()[-1].cells)[MAIN].commit == 0


def test_a_paused_agent_suspects_no_region_because_of_its_own_pause(follower: Driver) -> None:
    follower.run(1.0, hearing=(A, C), commits=True)
    follower.now = 30.0
    follower.handle(Tick())
    assert follower.suspected() == frozenset()
    assert follower.requested(ReadRecord).linearizable
    follower.run(PATIENCE_S + 0.2)
    assert follower.suspected() == {A, C}


def test_a_paused_agent_keeps_its_earlier_suspicions(follower: Driver) -> None:
    follower.run(1.2, hearing=(C,))
    follower.now = 30.0
    follower.handle(Tick())
    assert follower.suspected() == {A}


def test_lateness_up_to_the_limit_is_not_a_pause(follower: Driver) -> None:
    follower.run(1.0, hearing=(A, C), commits=True)
    due = follower.core.next_deadline()
    assert due is not None
    follower.now = due + DEFAULTS.lag_s_max
    follower.handle(Tick())
    assert not any(isinstance(one, CellEffect) and isinstance(one.effect, ReadRecord) for one in follower.effects)


def test_an_agent_takes_part_in_several_cells_with_different_leaders() -> None:
    driver = Driver(B, MAIN, OTHER)
    driver.start(MAIN, leader=A, region=B)
    driver.start(OTHER, leader=B, region=B)
    assert CellEffect(cell=OTHER, effect=StartServing(epoch=1)) in driver.effects
    driver.run(1.2, hearing=(C,))
    # us-east is silent and leads the cell main. This agent leads the other cell and reads its commits.
    assert driver.suspected(MAIN) == {A}
    assert ReadCommit(cell=OTHER) in driver.effects
    assert ReadCommit(cell=MAIN) not in driver.effects
    assert [cell for cell, _ in driver.sent()[-1].cells] == [MAIN, OTHER]


def test_a_cell_that_has_not_started_ignores_heartbeats_and_suspicions() -> None:
    driver = Driver(B, MAIN, OTHER)
    driver.start(MAIN, leader=A, region=B)
    driver.hear(A, commit=5, cells=(MAIN, OTHER))
    driver.run(2.0)
    assert not driver.core.machines[OTHER].facts.started
    assert driver.core.machines[OTHER].facts.peers.suspected == frozenset()


def test_tickets_of_an_incarnation_are_above_those_of_earlier_ones() -> None:
    first, second = Driver(B, MAIN, incarnation=1), Driver(B, MAIN, incarnation=2)
    for driver in (first, second):
        driver.handle(Started(promise=Promise(epoch=1), ledger=MemberState(kind="stopped")))
    assert second.requested(ReadRecord).ticket - first.requested(ReadRecord).ticket == TICKETS_AN_INCARNATION


def test_an_answer_to_an_earlier_incarnation_is_ignored(leader: Driver) -> None:
    before = leader.core.machines[MAIN].facts.member.quorum
    leader.handle(LedgerDone(ticket=7))
    assert leader.core.machines[MAIN].facts.member.quorum == before


def test_a_ticket_has_the_incarnation_in_its_upper_bits_and_a_count_in_its_lower_32() -> None:
    driver = Driver(B, MAIN, incarnation=2)
    driver.handle(Started(promise=Promise(epoch=1), ledger=MemberState(kind="stopped")))
    assert driver.requested(ReadRecord).ticket == (2 << 32) + 1


def test_the_first_heartbeat_of_an_incarnation_has_sequence_one() -> None:
    driver = Driver(B, MAIN, incarnation=3)
    driver.handle(Started(promise=Promise(epoch=1), ledger=MemberState(kind="stopped")))
    assert {(one.incarnation, one.sequence) for one in driver.sent()} == {(3, 1)}


def test_the_regions_of_a_cell_default_to_its_voters() -> None:
    core = FailoverCore(region=B, incarnation=1, cells={MAIN: CellRegions(voters=VOTERS)})
    started = Started(promise=Promise(epoch=1), ledger=MemberState(kind="stopped"))
    effects = core.handle(CellEvent(cell=MAIN, event=started), now=0.0)
    assert [one.to for one in effects if isinstance(one, SendHeartbeat)] == [A, C]


def test_a_second_cell_that_starts_does_not_change_the_heartbeat_interval() -> None:
    driver = Driver(B, MAIN, OTHER)
    driver.start(MAIN, leader=A, region=B)
    driver.now = 0.05
    driver.handle(Started(promise=Promise(epoch=1), ledger=MemberState(kind="stopped")), OTHER)
    assert driver.sent() == []
    assert driver.core.next_deadline() == BEAT_S


def test_an_event_of_one_cell_also_handles_the_deadline_of_another() -> None:
    driver = Driver(B, MAIN, OTHER)
    driver.handle(Started(promise=Promise(epoch=1), ledger=MemberState(kind="stopped")), OTHER)
    driver.start(MAIN, leader=A, region=B)
    driver.run(DEFAULTS.request_s_max - 0.05)
    driver.now = DEFAULTS.request_s_max
    driver.handle(Tick())
    collected = [one.effect for one in driver.effects if isinstance(one, CellEffect) and one.cell == OTHER]
    assert any(isinstance(one, Log) and "etcd does not answer" in one.text for one in collected)


def test_a_new_incarnation_of_a_peer_starts_a_new_history(follower: Driver) -> None:
    for wait in (0.02, 0.4) * 20:
        follower.run(wait)
        follower.hear(C)
    assert follower.core.phi(MAIN, C, now=follower.now + PATIENCE_S) < 4.0
    follower.hear(C, incarnation=2, sequence=1)
    assert follower.core.phi(MAIN, C, now=follower.now + PATIENCE_S) > 8.0


def test_a_heartbeat_with_only_a_newer_commit_is_not_passed_to_the_machine(follower: Driver) -> None:
    follower.hear(A, commit=5)
    follower.hear(A, commit=6)
    assert follower.core.machines[MAIN].facts.peers.gossip[A].commit == 5
    follower.hear(A, commit=7, suspects=1)
    assert follower.core.machines[MAIN].facts.peers.gossip[A].commit == 7


def test_a_new_leader_gets_the_full_timeout_and_its_first_commit_counts_at_any_lsn(follower: Driver) -> None:
    follower.run(2.0, hearing=(A, C), commits=True)
    follower.run(0.7, hearing=(A,), commits=True)
    begun = follower.now
    follower.handle(RecordSeen(revision=2, record=replace(record(C), epoch=2, ancestry=(1, 2), fence_id=UUID(int=2))))
    assert follower.core.phi(MAIN, C, now=begun + 0.9) < 8.0
    follower.run(0.5, hearing=(A,))
    follower.hear(C, commit=1)
    assert follower.core.phi(MAIN, C, now=begun + 1.4) < 8.0


# The detectors of one cell.


def monitor(acting: RegionName | None = A, *, needs_commits: bool = True) -> CellMonitor:
    """Return the monitor of a cell in which ``acting`` leads since time 0; no heartbeat has arrived."""
    watched = CellMonitor((A, C, RegionName("sa-east")), DEFAULTS, 0.0)
    watched.acting, watched.needs_commits = acting, needs_commits
    return watched


def gossip(commit: int = 0) -> Gossip:
    return Gossip(epoch=1, commit=commit)


def test_a_heartbeat_of_the_leader_counts_only_with_a_commit_above_all_earlier_ones() -> None:
    watched = monitor()
    for now, commit in ((0.1, 7), (0.2, 5), (0.3, 6), (0.4, 7)):
        watched.heard(A, gossip(commit), now)
    assert watched.detectors[A].last_s == 0.1
    watched.heard(A, gossip(8), 0.5)
    assert watched.detectors[A].last_s == 0.5


def test_a_commit_of_another_region_does_not_raise_the_newest_commit_of_the_leader() -> None:
    watched = monitor()
    watched.heard(C, gossip(1000), 0.1)
    watched.heard(A, gossip(5), 0.2)
    assert watched.detectors[A].last_s == 0.2


@pytest.mark.parametrize(
    ("heard", "acting", "needs_commits", "counts"),
    [
        ({C: 0.7}, A, True, True),
        ({C: 0.69}, A, True, False),
        ({A: 0.9}, A, True, False),
        ({A: 0.9, C: 0.1, RegionName("sa-east"): 0.9}, A, True, True),
        ({C: 0.9}, C, True, False),
        ({C: 0.9}, A, False, False),
        ({}, A, True, False),
    ],
    ids=[
        "another region was heard since",
        "another region was heard before",
        "only the leader itself was heard",
        "one of several other regions was heard since",
        "the refusing region does not lead",
        "the leader does not serve yet",
        "no region was ever heard",
    ],
)
def test_a_refusal_counts_only_for_a_serving_leader_while_another_region_is_heard(
    heard: dict[RegionName, float], acting: RegionName, needs_commits: bool, counts: bool
) -> None:
    watched = monitor(acting, needs_commits=needs_commits)
    watched.heard_at = dict(heard)
    usual = watched.detectors[A].trips_at
    watched.refused(A, 0.7)
    assert (watched.detectors[A].trips_at < usual) is counts


@pytest.mark.parametrize(("ago_s", "counts"), [(0.29, True), (0.31, False)])
def test_a_refusal_counts_if_another_region_was_heard_within_three_heartbeats(
    follower: Driver, ago_s: float, counts: bool
) -> None:
    follower.run(3.0, hearing=(A, C), commits=True)
    heard_at = follower.now
    follower.hear(C, suspects=1)
    follower.now = heard_at + ago_s
    usual = follower.core.phi(MAIN, A, now=follower.now)
    follower.refuse_connection(A)
    assert (follower.core.phi(MAIN, A, now=follower.now) > usual) is counts


def test_a_verdict_is_returned_only_when_the_suspicion_changes() -> None:
    watched = monitor()
    assert watched.verdicts(1.0) == []
    watched.heard(C, gossip(), 1.0)
    watched.heard(RegionName("sa-east"), gossip(), 1.0)
    assert watched.verdicts(1.5) == [SuspicionChanged(region=A, suspected=True)]
    assert watched.verdicts(1.6) == []
    watched.heard(A, gossip(1), 1.7)
    assert watched.verdicts(1.7) == [SuspicionChanged(region=A, suspected=False)]
    assert watched.verdicts(1.8) == []
