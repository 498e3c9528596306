"""The states of an agent in a cell and the transitions between them, as data.

A state is read off the facts; it decides nothing. It exists for people, for logs and for the coverage of
tests: ``machine.py`` refuses a change that is not in the table, and the diagram in ARCHITECTURE.md is made
from it.
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
    "starting": "has not heard of a record yet",
    "observing": "holds no member that votes; suspects and tells",
    "refusing": "cannot take part, and says why",
    "bootstrapping": "makes the ledger of a new cell",
    "following": "its member receives the leader's WAL",
    "rejoining": "its member is pointed at the leader, rewound or copied",
    "freezing": "another candidate recruits; its member is being frozen",
    "promised": "its promise and its position are published",
    "recruiting": "it is the candidate and collects votes",
    "promoting": "its member was chosen; from its quorum to its fence row",
    "leading": "it takes writes",
    "handing-over": "an operator wants another leader; it takes no more writes and drains",
    "stepping-down": "its member was primary or it led, and that is over; PostgreSQL is being stopped",
}


def state_of(facts: Facts) -> State:
    """Return the state that the facts amount to."""
    record, ledger = facts.record, facts.ledger
    if not facts.started or (record is None and facts.unable is None):
        return "starting"
    if facts.unable is not None:
        return "refusing"
    assert record is not None
    if ledger is None or (facts.region not in record.voters and facts.region not in record.joining):
        return "observing"
    if ledger.kind == "primary" and not (facts.leads and facts.is_primary_of(record.epoch)):
        return "stepping-down"
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
    if facts.handover is not None:
        return "handing-over"
    if facts.open_epoch == record.epoch:
        return "leading"
    return "promoting" if record.phase != "serving" else "stepping-down"


TRANSITIONS: dict[State, frozenset[State]] = {state: frozenset(MEANINGS) for state in MEANINGS}
"""From each state, those that may come next."""
