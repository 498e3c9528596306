"""A driver of one cell's machine, the records that tests begin with, and the steps of a switchover."""

from dataclasses import replace
from typing import TypeVar
from uuid import UUID

from regions.failover.effects import (
    DrainLedger,
    Effect,
    FreezeLedger,
    Log,
    ReadRecord,
    SetQuorum,
    StopLedger,
    SwapRecord,
)
from regions.failover.events import (
    Event,
    Gossip,
    GossipHeard,
    LedgerDone,
    LedgerDrained,
    LedgerFrozen,
    MemberState,
    Order,
    Promise,
    RecordRead,
    RecordSeen,
    Release,
    StandbysStreaming,
    Started,
    SwapAnswered,
    Tick,
    Ticket,
)
from regions.failover.invariants import violations
from regions.failover.machine import Machine
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership, Succession
from regions.position import Position
from tests.scenarios.words import Asked

A, B, C, D = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east"))
SERVING = Leadership(
    epoch=1,
    leader=A,
    phase="serving",
    fence_id=UUID(int=1),
    reason="first start",
    since="",
    voters=(A, B, C),
    ancestry=(1,),
)
RECRUITING = replace(SERVING, epoch=2, leader=B, phase="recruiting", fence_id=None)
CHOSEN = replace(RECRUITING, phase="promoting")
"""B was chosen by votes."""

ANNOUNCED = replace(SERVING, succession=Succession(region=B, reason=f"switch to {B}: me"))
RELEASE = Release(epoch=1, revision=2, successor=B, lsn=500)
HANDED_OVER = replace(
    ANNOUNCED,
    epoch=2,
    leader=B,
    phase="promoting",
    fence_id=None,
    reason=f"switch to {B}: me",
    target=B,
    succession=None,
    handed_over_at=Position(1, 500),
)


Kind = TypeVar("Kind", bound=Asked)


class Driver:
    """A machine, its clock, and the effects of the last event."""

    def __init__(self, region: RegionName) -> None:
        cell = CellRegions(voters=(A, B, C), regions=(A, B, C, D))
        self.machine = Machine(region=region, cell=cell, settings=DEFAULTS, first_ticket=100)
        self.now = 0.0
        self.effects: list[Effect] = []

    def handle(self, event: Event) -> None:
        self.effects = self.machine.handle(event, now=self.now)
        assert violations(self.machine.facts) == ()

    def start(self, ledger: MemberState | None, promise: Promise | None, record: Leadership = SERVING) -> None:
        self.handle(Started(promise=promise, ledger=ledger))
        self.handle(RecordRead(ticket=self.ticket(ReadRecord), revision=1, record=record))
        if ReadRecord in self.kinds():
            # A leader repeats the read as a linearizable one.
            self.handle(RecordRead(ticket=self.ticket(ReadRecord), revision=1, record=record))

    def requested(self, kind: type[Kind]) -> Kind:
        """Return the only request of this kind among the effects of the last event."""
        (found,) = (effect for effect in self.effects if isinstance(effect, kind))
        return found

    def ticket(self, kind: type[Asked]) -> Ticket:
        return self.requested(kind).ticket

    def requested_record(self) -> Leadership:
        return self.requested(SwapRecord).record

    def kinds(self) -> list[type[Effect]]:
        return [type(effect) for effect in self.effects]

    def answer_freeze(self, lsn: int, ancestry: tuple[Epoch, ...] = (1,)) -> None:
        """Answer the requested ``FreezeLedger``: the member is frozen at ``lsn``."""
        ticket = self.requested(FreezeLedger).ticket
        self.handle(LedgerFrozen(ticket=ticket, receiving=False, received=lsn, replayed=lsn, ancestry=ancestry))

    def advance(self, seconds: float) -> None:
        """Advance the clock and send ``Tick``."""
        self.now += seconds
        self.handle(Tick())

    def logged(self, text: str) -> bool:
        return any(isinstance(effect, Log) and text in effect.text for effect in self.effects)


def leading() -> Driver:
    """Return the agent of A, which leads epoch 1 and accepts writes; its quorum is in force."""
    driver = Driver(A)
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1))
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    return driver


def restarted(record: Leadership = SERVING) -> Driver:
    """Return the agent of A after a restart: its member is primary, and a linearizable read of etcd is pending."""
    driver = Driver(A)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="primary", epoch=1)))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=8, record=record))
    return driver


def following(region: RegionName) -> Driver:
    """Return the agent of another region, whose member follows A."""
    driver = Driver(region)
    driver.start(MemberState(kind="following", epoch=1), Promise(epoch=1, lineage=1))
    return driver


def order(kind: str, region: RegionName | None = None, *, ticket: int = 7) -> Order:
    return Order(ticket=ticket, kind=kind, region=region, by="an operator")  # pyright: ignore[reportArgumentType]


# A switchover to B.


def announce_switchover(leader: Driver) -> None:
    """Order a switch to B, and confirm the swap that announces B."""
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(replace(order("switch", B), by="me"))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=2))


def release_epoch(leader: Driver) -> None:
    """Carry out a switch to B up to the release: the drain and the stop are answered."""
    announce_switchover(leader)
    leader.handle(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=500))
    leader.handle(LedgerDone(ticket=leader.ticket(StopLedger)))


def prepare_successor(successor: Driver) -> Ticket:
    """Report that the leader has drained, freeze the successor's member, return the ticket of its ``SetQuorum``."""
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    successor.handle(
        LedgerFrozen(
            ticket=successor.ticket(FreezeLedger),
            receiving=False,
            received=RELEASE.lsn,
            replayed=RELEASE.lsn,
            ancestry=(1,),
        )
    )
    return successor.ticket(SetQuorum)
