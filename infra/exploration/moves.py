"""Generates every event that can happen next in a state, always in the same order."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from infra.exploration import postgres
from infra.exploration.answers import LONG_AGO, eager, later, tell
from infra.exploration.bounds import spend
from infra.exploration.crashes import crashed, restarted
from infra.exploration.describe import REGIONS
from infra.exploration.node import Node, Outcome, Violated, during, step
from infra.exploration.world import Move, State, World
from regions.failover.events import (
    AgentPaused,
    GossipHeard,
    LedgerEnded,
    Order,
    QuorumWaitCancelled,
    RecordSeen,
    StandbysStreaming,
    StrongReads,
    SuspicionChanged,
    Tick,
)
from regions.failover.facts import NO_RETRY, Facts
from regions.failover.handover import Preparing, RestartDelayed
from regions.identity import RegionName

_ALL = range(len(REGIONS))


def successors(world: World, state: State) -> Iterator[Move]:
    """Generate every event that can happen in a state, with the state after it."""
    for region in _ALL:
        for request in state.nodes[region].requests:
            if request.mode == "now":
                yield from eager(world, state, region, request)
                return
    for region in _ALL:
        node = state.nodes[region]
        if node.machine is None:
            yield from restarted(world, state, region)
        else:
            yield from _by_agent(world, state, region, node)
        yield from _by_member(world, state, region)
    yield from _by_etcd(world, state)


def _by_agent(world: World, state: State, region: int, node: Node) -> Iterator[Move]:
    for request in node.requests:
        yield from later(world, state, region, request)
    yield from _watch(world, state, region, node)
    for sender in _ALL:
        if sender != region:
            yield from _gossip(world, state, region, sender)
    yield from _timers(world, state, region, node)
    yield from _suspicion(world, state, region, node)
    yield from crashed(world, state, region)
    yield from _orders(world, state, region, node)
    lags = spend(state.budget.value, "lags")
    if lags is not None:
        yield from tell(
            world, state._replace(budget=world.budgets.one(lags)), region, AgentPaused(), ("was paused", region)
        )  # fmt: skip


def _watch(world: World, state: State, region: int, node: Node) -> Iterator[Move]:
    assert node.machine is not None
    revision = node.machine.facts.etcd.revision + 1
    history = state.etcd.value.history
    if revision <= len(history):
        number = history[revision - 1]
        event = RecordSeen(revision=revision, record=world.record(number))
        yield from tell(world, state, region, event, ("sees", region, revision, number))


def _gossip(world: World, state: State, region: int, sender: int) -> Iterator[Move]:
    """Deliver another agent's gossip once it makes a difference; before that it would only be stored."""
    node = state.nodes[region]
    assert node.machine is not None
    facts = node.machine.facts
    record = facts.record
    if record is None:
        return
    held = facts.peers.gossip.get(REGIONS[sender])
    for word in state.nodes[sender].said:
        news = word.epoch > record.epoch and not facts.etcd.must_read
        counts = word.vote is not None and word.vote.epoch == record.epoch and facts.leads
        vote = counts and record.phase == "recruiting" and (held is None or held.vote != word.vote)
        agrees = word.suspects == record.epoch and record.leader in facts.peers.suspected
        suspicion = agrees and (held is None or held.suspects != word.suspects)
        release = word.release is not None and word.release.epoch == record.epoch and facts.release != word.release
        succeeds = record.succession is not None and record.succession.region == REGIONS[region]
        drained = REGIONS[sender] == record.leader and word.drained == record.epoch and succeeds
        relief = drained != isinstance(facts.handover, Preparing) and REGIONS[sender] == record.leader
        if news or vote or suspicion or release or relief:
            event = GossipHeard(sender=REGIONS[sender], gossip=word)
            yield from tell(world, state, region, event, ("hears", region, sender, word))


def _timers(world: World, state: State, region: int, node: Node) -> Iterator[Move]:
    assert node.machine is not None
    facts = node.machine.facts
    if facts.requests.ledger_retry.at is not None:
        yield from _fire(world, state, region, "retries its member", _end_ledger_pause)
    if facts.requests.etcd_retry.at is not None:
        yield from _fire(world, state, region, "retries etcd", _end_etcd_pause)
    if isinstance(facts.handover, Preparing):
        yield from _fire(world, state, region, "stops waiting for the old leader", _end_relief)
    if isinstance(facts.handover, RestartDelayed):
        yield from _fire(world, state, region, "ends its restart delay", _end_rest)
    record = facts.record
    stalls = record is not None and record.phase not in ("serving", "bootstrapping")
    if record is not None and stalls and record.epoch < world.bounds.epochs_max:
        yield from _fire(world, state, region, "sees no progress of the epoch", _begin_long_ago)
    working = facts.requests.working
    if working is not None and not any(one.effect.ticket == working.ticket for one in node.requests):
        yield from _fire(world, state, region, "gives up an effect that was dropped", _give_up_work)


def _fire(world: World, state: State, region: int, what: str, prepare: Callable[[Facts], None]) -> Iterator[Move]:
    return world.react(state, region, (what, region), lambda node: step(node, Tick(), prepare))


def _end_ledger_pause(facts: Facts) -> None:
    facts.requests.ledger_retry = NO_RETRY


def _end_etcd_pause(facts: Facts) -> None:
    facts.requests.etcd_retry = NO_RETRY


def _end_relief(facts: Facts) -> None:
    facts.handover = Preparing(until=LONG_AGO)


def _end_rest(facts: Facts) -> None:
    facts.handover = RestartDelayed(until=LONG_AGO)


def _begin_long_ago(facts: Facts) -> None:
    facts.record_since = LONG_AGO


def _give_up_work(facts: Facts) -> None:
    assert facts.requests.working is not None
    facts.requests.working = replace(facts.requests.working, until=LONG_AGO)


def _suspicion(world: World, state: State, region: int, node: Node) -> Iterator[Move]:
    assert node.machine is not None
    facts = node.machine.facts
    budget = spend(state.budget.value, "suspicions")
    if budget is None or facts.record is None or facts.leads:
        return
    leader = facts.record.leader
    suspected = leader not in facts.peers.suspected
    before = state._replace(budget=world.budgets.one(budget))
    event = SuspicionChanged(region=leader, suspected=suspected)
    yield from tell(world, before, region, event, ("suspects" if suspected else "trusts", region, leader))


def _orders(world: World, state: State, region: int, node: Node) -> Iterator[Move]:
    """An operator orders a switchover, drains a region, removes a voter, or adds one again."""
    assert node.machine is not None
    yield from _drains(world, state, region, node.machine.facts)
    if node.machine.facts.member.serving_epoch:
        yield from _switches(world, state, region)
        yield from _resizes(world, state, region, node.machine.facts)


def _drains(world: World, state: State, region: int, facts: Facts) -> Iterator[Move]:
    """Any agent accepts an order to drain, at any time."""
    budget = spend(state.budget.value, "drains")
    if budget is None or facts.record is None or facts.requests.swapping is not None or facts.etcd.must_read:
        return
    before = state._replace(budget=world.budgets.one(budget))
    for target in _ALL:
        if REGIONS[target] not in facts.record.drained:
            order = Order(ticket=0, kind="drain", region=REGIONS[target], by="")
            yield from tell(world, before, region, order, ("is ordered to drain", region, target))


def _resizes(world: World, state: State, region: int, facts: Facts) -> Iterator[Move]:
    """A follower is removed or added again; while one joins, the leader's driver reports the streaming standbys."""
    record, budget = facts.record, spend(state.budget.value, "resizes")
    assert record is not None, "a region serves without a record"
    if record.joining:
        close = frozenset(REGIONS[one] for one in _ALL if _streams(state, one, region))
        if close != facts.member.standbys:
            event, label = (
                StandbysStreaming(regions=close),
                ("sees the streaming standbys", region, tuple(sorted(close))),
            )
            yield from tell(world, state, region, event, label)
    busy = (
        facts.requests.swapping is not None
        or facts.etcd.must_read
        or facts.switchover is not None
        or facts.resize is not None
    )
    if budget is None or busy:
        return
    before = state._replace(budget=world.budgets.one(budget))
    for target in _ALL:
        name = REGIONS[target]
        if name not in record.voters and name not in record.joining:
            order = Order(ticket=0, kind="add", region=name, by="")
            yield from tell(world, before, region, order, ("is ordered to add", region, target))
        elif name in record.voters and name != record.leader and len(record.voters) > VOTERS_MIN:
            label = ("is ordered to remove", region, target)
            yield from world.react(before, region, label, _removes(name))


def _streams(state: State, region: int, leader: int) -> bool:
    member, primary = state.members[region].value, state.members[leader].value
    return member.kind == "standby" and member.source == leader and postgres.accepts(member, primary)


VOTERS_MIN = 2
"""``orders.py`` keeps at least three voters. The exploration has no fourth region, so it lets two remain: majorities of
two and of three voters intersect as those of three and of four do."""


def _removes(region: RegionName) -> Callable[[Node], Outcome]:
    order = Order(ticket=0, kind="remove", region=region, by="")

    def begin(facts: Facts) -> None:
        assert facts.record is not None, "no record names voters yet"
        facts.resize = tuple(one for one in facts.record.voters if one != region), order

    return lambda node: step(node, Tick(), begin)


def _switches(world: World, state: State, region: int) -> Iterator[Move]:
    budget = spend(state.budget.value, "switches")
    if budget is None:
        return
    before = state._replace(budget=world.budgets.one(budget))
    for target in _ALL:
        if target != region:
            order = Order(ticket=0, kind="switch", region=REGIONS[target], by="")
            label = ("is ordered to hand over", region, target)
            yield from world.react(before, region, label, _ordered(order))


def _ordered(order: Order) -> Callable[[Node], Outcome]:
    assert order.region is not None, "a switch names its region"
    close = frozenset({order.region})
    return lambda node: step(node, order, lambda facts: _stream_from(facts, close))


def _stream_from(facts: Facts, close: frozenset[RegionName]) -> None:
    facts.member.standbys = close


# Members, clients and etcd.


def _by_member(world: World, state: State, region: int) -> Iterator[Move]:
    member = state.members[region].value
    if member.kind == "standby" and member.source is not None:
        yield from _stream(world, state, region, member.source)
    if member.kind == "primary" and not state.nodes[region].held and _is_open(state.nodes[region], member):
        yield from _clients(world, state, region)
    if member.kind == "primary" and state.nodes[region].machine is not None:
        yield from _cut_short(world, state, region, member)
    budget = spend(state.budget.value, "ends")
    if budget is not None and member.kind in ("primary", "standby"):
        after = world.with_member(state, region, postgres.stop(member))
        after = after._replace(budget=world.budgets.one(budget))
        label = ("loses its PostgreSQL", region)
        if state.nodes[region].machine is None:
            yield label, after
        else:
            yield from tell(world, after, region, LedgerEnded(), label)


def _is_open(node: Node, member: postgres.Member) -> bool:
    """Whether write APIs admit writes.

    They do not ask an agent, except in the first epoch, which begins without a quorum. The fence row that they
    see may not have a quorum yet; each commit after it waits for its own quorum.
    """
    return node.gate > 0 or (len(member.names) > 0 and postgres.has(member, "fence", member.epoch))


def _cut_short(world: World, state: State, region: int, member: postgres.Member) -> Iterator[Move]:
    """A backend that waits for its quorum is cancelled (rule 7); its row stays."""
    budget = spend(state.budget.value, "cuts")
    if budget is not None and len(member.wal) > member.confirmed:
        before = state._replace(budget=world.budgets.one(budget))
        label = ("has a wait cancelled", region)
        yield from tell(world, before, region, QuorumWaitCancelled(epoch=member.epoch), label)


def _stream(world: World, state: State, region: int, source: int) -> Iterator[Move]:
    standby, primary = state.members[region].value, state.members[source].value
    if primary.kind != "primary" or not postgres.accepts(standby, primary):
        return
    received = postgres.receive(standby, primary)
    lsn = len(received.wal)
    if primary.acks[region] == lsn:
        return
    label = ("receives", region, source, lsn)
    with during(label):
        world.facts["votes are kept"] += state.nodes[region].voted > 0
        if primary.epoch < state.nodes[region].voted:
            raise Violated(
                f"{REGIONS[region]} has voted for epoch {state.nodes[region].voted}, "
                f"and acknowledges for epoch {primary.epoch}"
            )
        after = world.with_member(state, region, received)
        after = world.with_member(after, source, postgres.acknowledge(primary, region, lsn))
    yield label, after


def _clients(world: World, state: State, region: int) -> Iterator[Move]:
    member, budget = state.members[region].value, state.budget.value
    issued = world.first_write + world.bounds.budget.writes - budget.writes
    writes = spend(budget, "writes")
    if writes is not None:
        label = ("takes write", region, issued + 1)
        with during(label):
            after = world.with_member(state, region, postgres.append(member, region, "write", issued + 1))
        yield label, after._replace(budget=world.budgets.one(writes))
    retries = spend(budget, "retries")
    for number in range(1, issued + 1) if retries is not None else ():
        if number not in state.ghost.value.acked and retries is not None:
            before = state._replace(budget=world.budgets.one(retries))
            yield from _retry(world, before, region, number)
    reads, node = spend(budget, "reads"), state.nodes[region]
    if reads is not None and node.machine is not None and node.pledged is None:
        asked = world.with_node(state, region, pledged=state.ghost.value.acked)
        asked = asked._replace(budget=world.budgets.one(reads))
        yield from tell(world, asked, region, StrongReads(requests=(1,)), ("gets a strong read", region))


def _retry(world: World, state: State, region: int, number: int) -> Iterator[Move]:
    """A client that does not know the outcome retries with the same key, and the row decides (rule 9)."""
    member = state.members[region].value
    label = ("gets a retry of write", region, number)
    at = row_of(member, number)
    with during(label):
        if at is None:
            after = world.with_member(state, region, postgres.append(member, region, "write", number))
        elif at <= member.confirmed:
            after = world.acknowledged(state, region, [number])
        else:
            return
    yield label, after


def row_of(member: postgres.Member, number: int) -> int | None:
    """The LSN of the row of a client's request, found by the ledger's unique key; None if there is no row."""
    return postgres.position(member, "write", number)


def _by_etcd(world: World, state: State) -> Iterator[Move]:
    for swap in state.etcd.value.adrift:
        after = world.swapped(state, swap)
        if after is not None:
            yield ("etcd applies a late swap", -1, swap[1]), after
