"""Generates the crashes and restarts of agents and regions.

The member survives the crash of its agent, but not the crash of its region.
"""

from collections.abc import Iterator

from infra.exploration import postgres
from infra.exploration.bounds import spend
from infra.exploration.node import start
from infra.exploration.state_space import Move, State, StateSpace, member_state
from regions.failover.effects import SwapRecord


def crash_moves(space: StateSpace, state: State, region: int, when: str = "") -> Iterator[Move]:
    """The agent dies while its member continues to run; or its region dies with both."""
    budget = spend(state.budget.value, "crashes")
    if budget is None or state.nodes[region].machine is None:
        return
    without = _without_agent(space, state._replace(budget=space.budgets.intern(budget)), region)
    yield ("agent dies", region, when), without
    member = without.members[region].value
    if member.kind in ("standby", "primary"):
        dead = space.with_node(without, region, admitted_epoch=0)
        yield ("region dies", region, when), space.with_member(dead, region, postgres.stop(member))


def _without_agent(space: StateSpace, state: State, region: int) -> State:
    node = state.nodes[region]
    etcd = state.etcd.value
    swaps = [one.effect for one in node.requests if isinstance(one.effect, SwapRecord) and one.mode != "done"]
    for swap in swaps:
        unanswered = (swap.expected_revision, space.record_number(swap.record))
        if swap.expected_revision == len(etcd.history) and unanswered not in etcd.unanswered_swaps:
            etcd = etcd._replace(unanswered_swaps=tuple(sorted((*etcd.unanswered_swaps, unanswered))))
    state = state._replace(etcd=space.etcds.intern(etcd))
    return space.with_node(
        state, region, machine=None, writes_blocked=False, requests=(), owed_writes=None, facts_texts=("-", "-")
    )


def restart_moves(space: StateSpace, state: State, region: int) -> Iterator[Move]:
    """The agent starts again with the promise on its disk and its member as it is."""
    member = state.members[region].value
    ledger = member_state(member)
    label = ("agent starts", region, f"{ledger.kind} {ledger.epoch}")
    yield from space.apply_event(state, region, label, lambda down: start(down, region, ledger, 0))
