"""The invariants of one core, checked after each event: a pure function of its facts.

It decides nothing and repairs nothing; tests, the simulation and the exploration call it. They check themselves what
needs more than one region (one epoch acknowledges, nothing acknowledged is lost). Source: docs/failover.md, rules.
"""

from collections.abc import Iterator

from regions.failover import handover, steps
from regions.failover.effects import CopyLedger, InitialiseLedger, PromoteLedger, WriteFence
from regions.failover.facts import Facts
from regions.identity import Epoch


def violations(facts: Facts) -> tuple[str, ...]:
    """Return the violated invariants, one line each; empty if there are none."""
    return (*_of_writes(facts), *_of_promises(facts), *_of_requests(facts))


def _of_writes(facts: Facts) -> Iterator[str]:
    epoch, record = facts.member.serving_epoch, facts.record
    if not epoch:
        return
    if not facts.is_primary_of(epoch):
        yield f"writes are accepted under epoch {epoch}, and the member is no primary of it"
    if record is None or record.epoch != epoch or not facts.leads:
        yield f"writes are accepted under epoch {epoch}, and the record gives it to another"
    elif record.phase != "serving" and facts.member.fence is None:
        yield f"writes are accepted under epoch {epoch}, and its fence row is on no quorum"
    if facts.member.cancelled_wait_epoch == epoch:
        yield f"writes are accepted under epoch {epoch}, and a quorum wait under it was cancelled"
    if facts.switchover is not None and handover.announcement(facts.switchover):
        yield f"writes are accepted under epoch {epoch}, and it is being handed over"


def _of_promises(facts: Facts) -> Iterator[str]:
    promise, vote = facts.member.promise, steps.published_vote(facts)
    if promise is None:
        assert vote is None, "an agent whose promise cannot be read publishes no vote"
        return
    if vote is not None and vote.epoch > promise.epoch:
        yield f"a vote for epoch {vote.epoch} is published, and epoch {promise.epoch} is promised"
    if vote is not None and vote.position.epoch < promise.floor:
        yield f"a vote at epoch {vote.position.epoch} is published below the floor {promise.floor}"
    if (
        facts.member.ledger is not None
        and facts.member.ledger.kind == "primary"
        and facts.member.ledger.epoch > promise.epoch
    ):
        yield f"the member is primary of epoch {facts.member.ledger.epoch}, and epoch {promise.epoch} is promised"
    if facts.requests.storing is not None:
        stored = facts.requests.storing.promise
        falls = stored.epoch < promise.epoch or stored.lineage < promise.lineage
        if falls or stored.floor < promise.floor or stored.copying < promise.copying:
            yield f"a promise is taken back: {promise} becomes {stored}"


def _of_requests(facts: Facts) -> Iterator[str]:
    promise = facts.member.promise
    if facts.requests.working is None:
        return
    effect = facts.requests.working.effect
    # A copy continues when its epoch is over, so its epoch may be below a promise that was made for the next copy.
    goes_on = isinstance(effect, CopyLedger)
    if promise is None or (effect.epoch < promise.epoch and not goes_on):
        yield f"{type(effect).__name__} is asked for epoch {effect.epoch}, below the promise"
        return
    if isinstance(effect, PromoteLedger | InitialiseLedger) and promise.lineage < effect.epoch:
        yield f"{type(effect).__name__} of epoch {effect.epoch}, and no lineage would show it after a crash"
    if isinstance(effect, PromoteLedger | WriteFence) and not facts.leads and not _promises_newer(facts, effect.epoch):
        yield f"{type(effect).__name__} of epoch {effect.epoch} by a region that does not lead"


def _promises_newer(facts: Facts, epoch: Epoch) -> bool:
    """Whether a promise of the record's newer epoch is being written, after which another effect replaces this one."""
    record, storing = facts.record, facts.requests.storing
    newer = record is not None and record.epoch > epoch
    return newer and storing is not None and storing.promise.epoch > epoch
