"""Defines the bounds of the exploration: the number of faults of each kind, of epochs, and of client requests.

Within these bounds the exploration tries every interleaving, with one restriction: etcd, the agent's disk and its
PostgreSQL answer a request before anything else happens, unless a ``delay`` is spent on it; then the answer comes at
any later time or never. So d delays cover every schedule in which at most d answers are slow (delay-bounded
scheduling: Emmi, Qadeer and Rakamaric, POPL 2011). The restriction does not apply to watches, gossip, WAL, suspicions,
timers and clients: those events happen in any order, at any time, or never.
"""

from typing import NamedTuple


class Budget(NamedTuple):
    """How many events of each kind may still happen in a run.

    Attributes:
        faults: Total of the kinds from ``crashes`` to ``cuts``.
        crashes: Crashes of an agent alone, or of a region with its agent and its member.
        ends: PostgreSQL processes that end by themselves.
        delays: Answers that are late or missing.
        failures: Answers that report a failure, or an unknown outcome of a swap.
        stale: Answers of etcd with an older revision than the newest.
        lags: Pauses that an agent notices.
        cuts: Quorum waits that are cancelled on a primary.
        suspicions: Changes of an agent's suspicion of the leader; a silent leader costs one for each observer.
        writes: Writes of clients.
        retries: Retries of writes whose outcome the client does not know.
        reads: Strong reads.
        switches: Orders of a switchover.
        drains: Orders that a voter should lead only if no other can.
        resizes: Orders to remove a voter, or to add it again.
    """

    faults: int = 2
    crashes: int = 1
    ends: int = 1
    delays: int = 1
    failures: int = 1
    stale: int = 1
    lags: int = 0
    cuts: int = 0
    suspicions: int = 2
    writes: int = 1
    retries: int = 0
    reads: int = 0
    switches: int = 0
    drains: int = 0
    resizes: int = 0


class Bounds(NamedTuple):
    """The bounds of an exploration.

    Attributes:
        budget: The events that may happen.
        epochs_max: The highest epoch; a step that requests a higher one is left out.
        depth_max: Steps from the start at most; None for no limit.
        states_max: Distinct states at most; None for no limit.
    """

    budget: Budget = Budget()
    epochs_max: int = 3
    depth_max: int | None = None
    states_max: int | None = None


FAULTS = frozenset({"crashes", "ends", "delays", "failures", "stale", "lags", "cuts"})
"""The kinds that also count against ``Budget.faults``."""


def spend(budget: Budget, kind: str) -> Budget | None:
    """Return the budget after one event of ``kind``; None if the budget does not allow it."""
    left: int = getattr(budget, kind)
    if left <= 0 or (kind in FAULTS and budget.faults <= 0):
        return None
    faults = budget.faults - 1 if kind in FAULTS else budget.faults
    return budget._replace(**{kind: left - 1})._replace(faults=faults)
