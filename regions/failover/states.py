"""The states of an agent in a cell and the transitions between them, as data.

A state is computed from the facts and decides nothing. It exists for people, for logs and for the coverage of tests.
``machine.py`` refuses a transition that is not in the table, and the diagram in ARCHITECTURE.md is made from the table.
"""

from typing import Literal

from regions.failover.facts import Facts
from regions.failover.steps import published_vote

State = Literal[
    "starting",
    "observing",
    "refusing",
    "bootstrapping",
    "following",
    "rejoining",
    "freezing",
    "promised",
    "recruiting",
    "promoting",
    "leading",
    "handing-over",
    "stepping-down",
]

MEANINGS: dict[State, str] = {
    "starting": "has received no record yet",
    "observing": "has no voting member; suspects the leader and reports it",
    "refusing": "cannot take part, and reports why",
    "bootstrapping": "creates the ledger of a new cell",
    "following": "its member receives the leader's WAL",
    "rejoining": "connects its member to the leader, rewinds it or copies it",
    "freezing": "freezes its member, because another candidate recruits",
    "promised": "has published its promise and its position",
    "recruiting": "is the candidate and collects votes",
    "promoting": "promotes its chosen member: from its quorum to its fence row",
    "leading": "accepts writes",
    "handing-over": "hands over to another region: accepts no more writes and drains",
    "stepping-down": "stops PostgreSQL after it led or its member was primary",
}


def state_of(facts: Facts) -> State:
    """Return the state that follows from the facts."""
    record, ledger = facts.record, facts.member.ledger
    if facts.unable is not None:
        return "refusing"
    if record is None:
        return "starting"
    if ledger is not None and ledger.kind == "primary" and not (facts.leads and facts.is_primary_of(record.epoch)):
        return "stepping-down"
    if ledger is None or (facts.region not in record.voters and facts.region not in record.joining):
        return "observing"
    if facts.leads:
        return _acting(facts)
    if record.phase == "recruiting" and facts.votes_here:
        return "freezing" if published_vote(facts) is None else "promised"
    follows = ledger.kind == "following" and ledger.epoch == record.epoch
    return "following" if follows else "rejoining"


def _acting(facts: Facts) -> State:
    record = facts.record
    assert record is not None
    if record.phase == "bootstrapping":
        return "bootstrapping"
    if record.phase == "recruiting":
        return "recruiting"
    if facts.switchover is not None:
        return "handing-over"
    if facts.member.serving_epoch == record.epoch:
        return "leading"
    return "promoting" if record.phase != "serving" else "stepping-down"


USUAL: dict[tuple[State, State], str] = {
    ("starting", "observing"): "it has read the record, and has no vote",
    ("starting", "bootstrapping"): "it begins a new cell, or goes on beginning it",
    ("starting", "following"): "its member was left running and follows the leader",
    ("starting", "rejoining"): "its member does not follow the leader yet",
    ("starting", "freezing"): "a candidate recruits",
    ("starting", "leading"): "its member was left running and leads",
    ("starting", "stepping-down"): "its member is, or was, a primary that may not continue",
    ("starting", "refusing"): "the promise is lost, or etcd has lost the record",
    ("bootstrapping", "leading"): "the fence row is on a quorum, and the record says so",
    ("observing", "rejoining"): "an operator adds the region",
    ("following", "freezing"): "another candidate recruits",
    ("following", "recruiting"): "it is the candidate, by suspicion or by a stalled epoch",
    ("following", "promoting"): "the leader has handed over to it",
    ("following", "rejoining"): "another leader was chosen or handed over to, or PostgreSQL ended",
    ("following", "observing"): "an operator removes the region",
    ("rejoining", "following"): "WAL streams",
    ("rejoining", "freezing"): "another candidate recruits",
    ("rejoining", "recruiting"): "it is the candidate",
    ("rejoining", "promoting"): "the leader has handed over to it, and it was frozen before",
    ("freezing", "promised"): "the promise is on disk, the vote is published",
    ("freezing", "rejoining"): "another was chosen without its vote",
    ("freezing", "recruiting"): "the epoch stalls, or its candidate is silent: it begins the next one",
    ("promised", "promoting"): "it was chosen",
    ("promised", "rejoining"): "another was chosen",
    ("promised", "freezing"): "the next candidate recruits",
    ("promised", "recruiting"): "the epoch stalls, or its candidate is silent: it begins the next one",
    ("recruiting", "promoting"): "it chose itself",
    ("recruiting", "rejoining"): "it chose another",
    ("recruiting", "freezing"): "another candidate began the next epoch",
    ("promoting", "leading"): "the fence row is on a quorum: it accepts writes",
    ("promoting", "recruiting"): "its PostgreSQL may have been primary and is not: it begins the next epoch",
    ("promoting", "freezing"): "the epoch stalled, and another candidate recruits",
    ("promoting", "stepping-down"): "the epoch stalled when its member was primary already",
    ("leading", "handing-over"): "an operator switches to another region",
    ("leading", "stepping-down"): "a later epoch, or PostgreSQL ended",
    ("handing-over", "rejoining"): "its PostgreSQL is stopped, and the successor's epoch has begun",
    ("handing-over", "leading"): "the switchover failed: it accepts writes, or accepts them again",
    ("handing-over", "stepping-down"): "another region began an epoch, or etcd has to be read first",
    ("stepping-down", "freezing"): "PostgreSQL is stopped, and a candidate recruits",
    ("stepping-down", "rejoining"): "PostgreSQL is stopped, and there is another leader",
    ("stepping-down", "recruiting"): "PostgreSQL ended: it begins the next epoch itself",
    ("stepping-down", "leading"): "etcd was read: it still leads",
}
"""The transitions of the protocol, and what causes each."""

RARE: dict[tuple[State, State], str] = {
    ("starting", "recruiting"): "it was the candidate before it crashed",
    ("starting", "promoting"): "it was chosen before it crashed",
    ("refusing", "observing"): "etcd has the record again, and the region has no vote in it",
    ("refusing", "bootstrapping"): "etcd has the record again, of a cell that was being created",
    ("refusing", "following"): "etcd has the record again",
    ("refusing", "rejoining"): "etcd has the record again",
    ("refusing", "freezing"): "etcd has the record again, and a candidate recruits",
    ("refusing", "recruiting"): "etcd has the record again, and it is the candidate",
    ("refusing", "promoting"): "etcd has the record again, and it was chosen",
    ("refusing", "leading"): "etcd has the record again, and it leads",
    ("refusing", "stepping-down"): "etcd has the record again, and its member may not go on as primary",
    (
        "bootstrapping",
        "stepping-down",
    ): "PostgreSQL ended, etcd has to be read, or it missed a later epoch",
    ("bootstrapping", "recruiting"): "it crashed as a candidate, and the first etcd member that it asked lags behind",
    ("bootstrapping", "freezing"): "PostgreSQL ended, and it missed that it served: a candidate recruits",
    ("bootstrapping", "rejoining"): "PostgreSQL ended, and it missed that it served: another leads",
    ("bootstrapping", "observing"): "PostgreSQL ended, and it missed that it served and was removed",
    (
        "bootstrapping",
        "promoting",
    ): "it crashed after it was chosen, and the first etcd member that it asked lags behind",
    ("bootstrapping", "following"): "it crashed as a follower, and the first etcd member that it asked lags behind",
    ("observing", "following"): "it is added again before its member was stopped",
    ("observing", "freezing"): "the same, and it missed that it votes again",
    ("observing", "recruiting"): "the same, and it had begun an epoch before it crashed",
    ("observing", "promoting"): "the same, and it missed that it votes again: the leader has handed over to it",
    ("rejoining", "observing"): "an operator removes the region",
    ("rejoining", "stepping-down"): "a promotion that was under way took place, and another leads by now",
    (
        "freezing",
        "following",
    ): "it crashed as a follower, and the first etcd member that it asked still showed the election",
    ("freezing", "stepping-down"): "a promotion that was under way took place, and another leads by now",
    ("freezing", "promoting"): "it was chosen by a vote from before its PostgreSQL ended",
    ("freezing", "observing"): "it missed that the region was removed",
    ("promised", "observing"): "it missed that the region was removed",
    ("recruiting", "observing"): "it missed that the region was removed",
    (
        "recruiting",
        "leading",
    ): "it crashed as the leader, and the first etcd member that it asked still showed the election",
    ("recruiting", "stepping-down"): "the same, and its PostgreSQL was being frozen",
    ("promoting", "rejoining"): "it missed a whole epoch: another leads",
    ("promoting", "observing"): "it missed that the region was removed",
    ("leading", "promoting"): "PostgreSQL ended before the record said that it serves",
    (
        "handing-over",
        "promoting",
    ): "the switch failed before the record says that it serves; etcd is read first",
    ("handing-over", "recruiting"): "PostgreSQL ended: it begins the next epoch itself",
    ("handing-over", "freezing"): "PostgreSQL ended, and another candidate recruits",
    ("handing-over", "observing"): "PostgreSQL ended, and it missed that the region was removed",
    ("stepping-down", "following"): "it crashed as a follower, and the first etcd member that it asked lags behind",
    ("stepping-down", "observing"): "PostgreSQL is stopped, and the region was removed",
    ("stepping-down", "promoting"): "it was chosen by a vote from before an effect on its member took place after all",
}
"""The transitions after crashes, lost messages and late answers: an agent that was away may miss epochs."""

TRANSITIONS = {**USUAL, **RARE}
"""All transitions; ``machine.py`` refuses any other."""
