"""How far the exploration goes: how many faults of which kind, how many epochs, how many client requests.

Within these bounds every interleaving is tried, under one convention: what an agent asks of etcd, of its disk and
of its own PostgreSQL is answered before anything else happens, unless a ``delay`` is spent on it; then it is
answered at any later time or never. So with d delays every schedule is covered in which at most d answers are slow
(delay-bounded scheduling: Emmi, Qadeer and Rakamaric, POPL 2011). What passes between regions (watch, gossip,
WAL, suspicion, timers, clients) is never bound by it: it comes in any order, at any time, or not at all.
"""

from typing import NamedTuple


class Budget(NamedTuple):
    """What may still happen in a run.

    Attributes:
        faults: Of all that follows up to ``cuts``, together.
        crashes: An agent dies while its member lives, or a region dies with both.
        ends: A PostgreSQL ends by itself.
        delays: An answer that is late, or that never comes.
        failures: An answer that says no, or that a swap's outcome is not known.
        stale: An answer of etcd that is older than it need be.
        lags: An agent notices that it was away.
        cuts: A commit's wait for its quorum is cut short on a primary.
        suspicions: Changes of mind about the region that acts; a silent region costs one for each observer.
        writes: Writes of clients.
        retries: Retries of writes whose outcome the client does not know.
        reads: Reads that want the newest state.
        switches: Orders that another region shall lead.
        drains: Orders that a voter shall not lead when another can.
        resizes: Orders that a voter shall be removed, or added again.
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
        budget: What may happen.
        epochs_max: No epoch above this one is begun; a step that asks for one is left out.
        depth_max: Steps from the start; None for as many as there are.
        states_max: Distinct states; None for as many as there are.
    """

    budget: Budget = Budget()
    epochs_max: int = 3
    depth_max: int | None = None
    states_max: int | None = None


FAULTS = frozenset({"crashes", "ends", "delays", "failures", "stale", "lags", "cuts"})


def spend(budget: Budget, kind: str) -> Budget | None:
    """Return what is left after one of ``kind``; None when there is none left."""
    left: int = getattr(budget, kind)
    if left <= 0 or (kind in FAULTS and budget.faults <= 0):
        return None
    faults = budget.faults - 1 if kind in FAULTS else budget.faults
    return budget._replace(**{kind: left - 1})._replace(faults=faults)
