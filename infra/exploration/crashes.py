"""Generates the crashes and restarts of agents and regions.

The member survives the crash of its agent, but not the crash of its region.
"""

from collections.abc import Iterator

from infra.exploration import postgres
from infra.exploration.bounds import spend
from infra.exploration.node import start
from infra.exploration.world import Move, State, World, found
from regions.failover.effects import SwapRecord


def crashed(world: World, state: State, region: int, when: str = "") -> Iterator[Move]:
    """The agent dies while its member continues to run; or its region dies with both."""
    budget = spend(state.budget.value, "crashes")
    if budget is None or state.nodes[region].machine is None:
        return
    without = _without_agent(world, state._replace(budget=world.budgets.one(budget)), region)
    yield ("agent dies", region, when), without
    member = without.members[region].value
    if member.kind in ("standby", "primary"):
        dead = world.with_node(without, region, gate=0)
        yield ("region dies", region, when), world.with_member(dead, region, postgres.stop(member))


def _without_agent(world: World, state: State, region: int) -> State:
    node = state.nodes[region]
    etcd = state.etcd.value
    swaps = [one.effect for one in node.requests if isinstance(one.effect, SwapRecord) and one.mode != "done"]
    for swap in swaps:
        adrift = (swap.expected_revision, world.record_number(swap.record))
        if swap.expected_revision == len(etcd.history) and adrift not in etcd.adrift:
            etcd = etcd._replace(adrift=tuple(sorted((*etcd.adrift, adrift))))
    state = state._replace(etcd=world.etcds.one(etcd))
    return world.with_node(state, region, machine=None, held=False, requests=(), pledged=None, known=("-", "-"))


def restarted(world: World, state: State, region: int) -> Iterator[Move]:
    """The agent starts again with the promise on its disk and its member as it is."""
    member = state.members[region].value
    ledger = found(member)
    label = ("agent starts", region, f"{ledger.kind} {ledger.epoch}")
    yield from world.react(state, region, label, lambda down: start(down, region, ledger, 0))
