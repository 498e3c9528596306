"""Which plan an operator's order leads to: an answer at once, another record, a hand-over, or another quorum.

Orders are idempotent: an order whose result already exists is answered as done. A refusal is one line that names the
reason and what the operator can do.
"""

from dataclasses import dataclass, replace
from typing import assert_never

from regions.failover.events import Order
from regions.failover.facts import Facts
from regions.identity import RegionName
from regions.leadership import Leadership

BUSY = "the record is being written: ask again"

VOTERS_MIN = 3
"""With two voters the loss of either stops all writes, so no voter is removed from three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Done already (None), or refused."""

    refused: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Swap in this record; the order is done when the swap has succeeded."""

    record: Leadership


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Announce the ordered region as the successor, drain to it, and release the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Make commits wait for a majority of these voters, then write them to the record."""

    voters: tuple[RegionName, ...]


Plan = Answer | Swap | HandOver | Resize


def plan(facts: Facts, order: Order) -> Plan:
    """Return the plan of an order."""
    record = facts.record
    if record is None:
        return Answer(refused="the cell has no leadership yet")
    if order.kind in ("pause", "resume"):
        return _unless_busy(facts, record, replace(record, automatic=order.kind == "resume"))
    region = order.region
    if region is None or region not in (*facts.cell.regions, *facts.cell.voters):
        return Answer(refused=f"there is no region {region}")
    match order.kind:
        case "drain" | "undrain":
            return _drain(facts, record, region, wanted=order.kind == "drain")
        case "switch" | "add" | "remove":
            if not facts.leads:
                return Answer(refused=f"{facts.region} does not lead: ask {record.leader}")
            if facts.switchover is not None or facts.resize is not None:
                return Answer(refused="another order is being carried out")
            if not facts.member.serving_epoch:
                return Answer(refused=f"{facts.region} does not take writes at the moment: ask again")
            return _of_leader(facts, record, order, region)
        case _:
            assert_never(order.kind)


def _drain(facts: Facts, record: Leadership, region: RegionName, *, wanted: bool) -> Plan:
    if region not in record.voters:
        return Answer(refused=f"{region} holds no ledger")
    if (region in record.drained) == wanted:
        return Answer(refused=None)
    others = tuple(one for one in record.drained if one != region)
    return _unless_busy(facts, record, replace(record, drained=(*others, region) if wanted else others))


def _of_leader(facts: Facts, record: Leadership, order: Order, region: RegionName) -> Plan:
    if order.kind == "switch":
        return _switch(facts, record, region)
    if order.kind == "add":
        if region in record.voters or region in record.joining:
            return Answer(refused=None)
        return _unless_busy(facts, record, replace(record, joining=(*record.joining, region)))
    return _remove(facts, record, region)


def _remove(facts: Facts, record: Leadership, region: RegionName) -> Plan:
    if region in record.joining:
        left = tuple(one for one in record.joining if one != region)
        return _unless_busy(facts, record, replace(record, joining=left))
    if region not in record.voters:
        return Answer(refused=None)
    if region == facts.region:
        return Answer(refused=f"{region} leads: switch to another region first")
    if len(record.voters) <= VOTERS_MIN:
        return Answer(refused=f"a cell needs {VOTERS_MIN} voters: drain {region} instead, or add another voter first")
    if _is_busy(facts):
        return Answer(refused=BUSY)
    return Resize(voters=tuple(one for one in record.voters if one != region))


def _switch(facts: Facts, record: Leadership, region: RegionName) -> Plan:
    if region == facts.region:
        return Answer(refused=None)
    if region not in record.voters:
        return Answer(refused=f"{region} holds no ledger")
    if region in facts.peers.suspected:
        return Answer(refused=f"{region} is silent")
    if region not in facts.member.standbys:
        return Answer(refused=f"{region} lags behind, or does not stream")
    return HandOver()


def _unless_busy(facts: Facts, record: Leadership, wanted: Leadership) -> Plan:
    if wanted == record:
        return Answer(refused=None)
    if _is_busy(facts):
        return Answer(refused=BUSY)
    return Swap(record=replace(wanted, since=""))


def _is_busy(facts: Facts) -> bool:
    """A swap or re-read is pending, so the known record may be out of date."""
    return facts.requests.swapping is not None or facts.etcd.must_read
