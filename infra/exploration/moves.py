"""Generates every event that can happen next in a state, always in the same order."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from infra.exploration import postgres
from infra.exploration.answers import EXPIRED, delayed_answers, deliver, prompt_answers
from infra.exploration.bounds import spend
from infra.exploration.canonical_text import REGIONS
from infra.exploration.crashes import crash_moves, restart_moves
from infra.exploration.node import Node, Outcome, Violation, label_violations, step
from infra.exploration.state_space import Move, State, StateSpace
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


def successors(space: StateSpace, state: State) -> Iterator[Move]:
    """Generate every event that can happen in a state, with the state after it."""
    for region in _ALL:
        for request in state.nodes[region].requests:
            if request.mode == "now":
                yield from prompt_answers(space, state, region, request)
                return
    for region in _ALL:
        node = state.nodes[region]
        if node.machine is None:
            yield from restart_moves(space, state, region)
        else:
            yield from _by_agent(space, state, region, node)
        yield from _by_member(space, state, region)
    yield from _by_etcd(space, state)


def _by_agent(space: StateSpace, state: State, region: int, node: Node) -> Iterator[Move]:
    for request in node.requests:
        yield from delayed_answers(space, state, region, request)
    yield from _watch(space, state, region, node)
    for sender in _ALL:
        if sender != region:
            yield from _gossip(space, state, region, sender)
    yield from _timers(space, state, region, node)
    yield from _suspicion(space, state, region, node)
    yield from crash_moves(space, state, region)
    yield from _orders(space, state, region, node)
    lags = spend(state.budget.value, "lags")
    if lags is not None:
        yield from deliver(
            space, state._replace(budget=space.budgets.intern(lags)), region, AgentPaused(), ("was paused", region)
        )  # fmt: skip


def _watch(space: StateSpace, state: State, region: int, node: Node) -> Iterator[Move]:
    assert node.machine is not None
    revision = node.machine.facts.etcd.revision + 1
    history = state.etcd.value.history
    if revision <= len(history):
        number = history[revision - 1]
        event = RecordSeen(revision=revision, record=space.record(number))
        yield from deliver(space, state, region, event, ("sees", region, revision, number))


def _gossip(space: StateSpace, state: State, region: int, sender: int) -> Iterator[Move]:
    """Deliver another agent's gossip once it makes a difference; before that it would only be stored."""
    node = state.nodes[region]
    assert node.machine is not None
    facts = node.machine.facts
    record = facts.record
    if record is None:
        return
    stored = facts.peers.gossip.get(REGIONS[sender])
    for gossip in state.nodes[sender].gossip_in_flight:
        news = gossip.epoch > record.epoch and not facts.etcd.must_read
        counts = gossip.vote is not None and gossip.vote.epoch == record.epoch and facts.leads
        vote = counts and record.phase == "recruiting" and (stored is None or stored.vote != gossip.vote)
        agrees = gossip.suspects == record.epoch and record.leader in facts.peers.suspected
        suspicion = agrees and (stored is None or stored.suspects != gossip.suspects)
        release = (
            gossip.release is not None and gossip.release.epoch == record.epoch and facts.release != gossip.release
        )
        succeeds = record.succession is not None and record.succession.region == REGIONS[region]
        drained = REGIONS[sender] == record.leader and gossip.drained == record.epoch and succeeds
        relief = drained != isinstance(facts.handover, Preparing) and REGIONS[sender] == record.leader
        if news or vote or suspicion or release or relief:
            event = GossipHeard(sender=REGIONS[sender], gossip=gossip)
            yield from deliver(space, state, region, event, ("hears", region, sender, gossip))


def _timers(space: StateSpace, state: State, region: int, node: Node) -> Iterator[Move]:
    assert node.machine is not None
    facts = node.machine.facts
    if facts.requests.ledger_retry.at is not None:
        yield from _expire_timer(space, state, region, "retries its member", _expire_ledger_retry)
    if facts.requests.etcd_retry.at is not None:
        yield from _expire_timer(space, state, region, "retries etcd", _expire_etcd_retry)
    if isinstance(facts.handover, Preparing):
        yield from _expire_timer(space, state, region, "stops waiting for the old leader", _expire_preparation)
    if isinstance(facts.handover, RestartDelayed):
        yield from _expire_timer(space, state, region, "ends its restart delay", _expire_restart_delay)
    record = facts.record
    stalls = record is not None and record.phase not in ("serving", "bootstrapping")
    if record is not None and stalls and record.epoch < space.bounds.epochs_max:
        yield from _expire_timer(space, state, region, "sees no progress of the epoch", _expire_phase)
    working = facts.requests.working
    if working is not None and not any(one.effect.ticket == working.ticket for one in node.requests):
        yield from _expire_timer(space, state, region, "gives up an effect that was dropped", _expire_effect)


def _expire_timer(
    space: StateSpace, state: State, region: int, what: str, prepare: Callable[[Facts], None]
) -> Iterator[Move]:
    return space.apply_event(state, region, (what, region), lambda node: step(node, Tick(), prepare))


def _expire_ledger_retry(facts: Facts) -> None:
    facts.requests.ledger_retry = NO_RETRY


def _expire_etcd_retry(facts: Facts) -> None:
    facts.requests.etcd_retry = NO_RETRY


def _expire_preparation(facts: Facts) -> None:
    facts.handover = Preparing(until=EXPIRED)


def _expire_restart_delay(facts: Facts) -> None:
    facts.handover = RestartDelayed(until=EXPIRED)


def _expire_phase(facts: Facts) -> None:
    facts.record_since = EXPIRED


def _expire_effect(facts: Facts) -> None:
    assert facts.requests.working is not None
    facts.requests.working = replace(facts.requests.working, until=EXPIRED)


def _suspicion(space: StateSpace, state: State, region: int, node: Node) -> Iterator[Move]:
    assert node.machine is not None
    facts = node.machine.facts
    budget = spend(state.budget.value, "suspicions")
    if budget is None or facts.record is None or facts.leads:
        return
    leader = facts.record.leader
    suspected = leader not in facts.peers.suspected
    before = state._replace(budget=space.budgets.intern(budget))
    event = SuspicionChanged(region=leader, suspected=suspected)
    yield from deliver(space, before, region, event, ("suspects" if suspected else "trusts", region, leader))


def _orders(space: StateSpace, state: State, region: int, node: Node) -> Iterator[Move]:
    """An operator orders a switchover, drains a region, removes a voter, or adds one again."""
    assert node.machine is not None
    yield from _drains(space, state, region, node.machine.facts)
    if node.machine.facts.member.serving_epoch:
        yield from _switches(space, state, region)
        yield from _resizes(space, state, region, node.machine.facts)


def _drains(space: StateSpace, state: State, region: int, facts: Facts) -> Iterator[Move]:
    """Any agent accepts an order to drain, at any time."""
    budget = spend(state.budget.value, "drains")
    if budget is None or facts.record is None or facts.requests.swapping is not None or facts.etcd.must_read:
        return
    before = state._replace(budget=space.budgets.intern(budget))
    for target in _ALL:
        if REGIONS[target] not in facts.record.drained:
            order = Order(ticket=0, kind="drain", region=REGIONS[target], by="")
            yield from deliver(space, before, region, order, ("is ordered to drain", region, target))


def _resizes(space: StateSpace, state: State, region: int, facts: Facts) -> Iterator[Move]:
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
            yield from deliver(space, state, region, event, label)
    busy = (
        facts.requests.swapping is not None
        or facts.etcd.must_read
        or facts.switchover is not None
        or facts.resize is not None
    )
    if budget is None or busy:
        return
    before = state._replace(budget=space.budgets.intern(budget))
    for target in _ALL:
        name = REGIONS[target]
        if name not in record.voters and name not in record.joining:
            order = Order(ticket=0, kind="add", region=name, by="")
            yield from deliver(space, before, region, order, ("is ordered to add", region, target))
        elif name in record.voters and name != record.leader and len(record.voters) > VOTERS_MIN:
            label = ("is ordered to remove", region, target)
            yield from space.apply_event(before, region, label, _resize_without(name))


def _streams(state: State, region: int, leader: int) -> bool:
    member, primary = state.members[region].value, state.members[leader].value
    return member.kind == "standby" and member.source == leader and postgres.accepts(member, primary)


VOTERS_MIN = 2
"""``orders.py`` keeps at least three voters. The exploration has no fourth region, so it lets two remain: majorities of
two and of three voters intersect as those of three and of four do."""


def _resize_without(region: RegionName) -> Callable[[Node], Outcome]:
    order = Order(ticket=0, kind="remove", region=region, by="")

    def begin(facts: Facts) -> None:
        assert facts.record is not None, "no record names voters yet"
        facts.resize = tuple(one for one in facts.record.voters if one != region), order

    return lambda node: step(node, Tick(), begin)


def _switches(space: StateSpace, state: State, region: int) -> Iterator[Move]:
    budget = spend(state.budget.value, "switches")
    if budget is None:
        return
    before = state._replace(budget=space.budgets.intern(budget))
    for target in _ALL:
        if target != region:
            order = Order(ticket=0, kind="switch", region=REGIONS[target], by="")
            label = ("is ordered to hand over", region, target)
            yield from space.apply_event(before, region, label, _switch_order(order))


def _switch_order(order: Order) -> Callable[[Node], Outcome]:
    assert order.region is not None, "a switch names its region"
    close = frozenset({order.region})
    return lambda node: step(node, order, lambda facts: _set_streaming(facts, close))


def _set_streaming(facts: Facts, close: frozenset[RegionName]) -> None:
    facts.member.standbys = close


# Members, clients and etcd.


def _by_member(space: StateSpace, state: State, region: int) -> Iterator[Move]:
    member = state.members[region].value
    if member.kind == "standby" and member.source is not None:
        yield from _stream(space, state, region, member.source)
    if (
        member.kind == "primary"
        and not state.nodes[region].writes_blocked
        and _admits_writes(state.nodes[region], member)
    ):
        yield from _clients(space, state, region)
    if member.kind == "primary" and state.nodes[region].machine is not None:
        yield from _cancelled_waits(space, state, region, member)
    budget = spend(state.budget.value, "ends")
    if budget is not None and member.kind in ("primary", "standby"):
        after = space.with_member(state, region, postgres.stop(member))
        after = after._replace(budget=space.budgets.intern(budget))
        label = ("loses its PostgreSQL", region)
        if state.nodes[region].machine is None:
            yield label, after
        else:
            yield from deliver(space, after, region, LedgerEnded(), label)


def _admits_writes(node: Node, member: postgres.Member) -> bool:
    """Whether write APIs admit writes.

    They do not ask an agent, except in the first epoch, which begins without a quorum. The fence row that they
    see may not have a quorum yet; each commit after it waits for its own quorum.
    """
    return node.admitted_epoch > 0 or (
        len(member.standby_names) > 0 and postgres.has_row(member, "fence", member.epoch)
    )


def _cancelled_waits(space: StateSpace, state: State, region: int, member: postgres.Member) -> Iterator[Move]:
    """A backend that waits for its quorum is cancelled (rule 7); its row stays."""
    budget = spend(state.budget.value, "cuts")
    if budget is not None and len(member.wal) > member.confirmed:
        before = state._replace(budget=space.budgets.intern(budget))
        label = ("has a wait cancelled", region)
        yield from deliver(space, before, region, QuorumWaitCancelled(epoch=member.epoch), label)


def _stream(space: StateSpace, state: State, region: int, source: int) -> Iterator[Move]:
    standby, primary = state.members[region].value, state.members[source].value
    if primary.kind != "primary" or not postgres.accepts(standby, primary):
        return
    received = postgres.receive(standby, primary)
    lsn = len(received.wal)
    if primary.acks[region] == lsn:
        return
    label = ("receives", region, source, lsn)
    with label_violations(label):
        space.facts["votes are kept"] += state.nodes[region].voted_epoch > 0
        if primary.epoch < state.nodes[region].voted_epoch:
            raise Violation(
                f"{REGIONS[region]} has voted for epoch {state.nodes[region].voted_epoch}, "
                f"and acknowledges for epoch {primary.epoch}"
            )
        after = space.with_member(state, region, received)
        after = space.with_member(after, source, postgres.acknowledge(primary, region, lsn))
    yield label, after


def _clients(space: StateSpace, state: State, region: int) -> Iterator[Move]:
    member, budget = state.members[region].value, state.budget.value
    issued = space.first_write + space.bounds.budget.writes - budget.writes
    writes = spend(budget, "writes")
    if writes is not None:
        label = ("takes write", region, issued + 1)
        with label_violations(label):
            after = space.with_member(state, region, postgres.append(member, region, "write", issued + 1))
        yield label, after._replace(budget=space.budgets.intern(writes))
    retries = spend(budget, "retries")
    for number in range(1, issued + 1) if retries is not None else ():
        if number not in state.ghost.value.acked and retries is not None:
            before = state._replace(budget=space.budgets.intern(retries))
            yield from _retry(space, before, region, number)
    reads, node = spend(budget, "reads"), state.nodes[region]
    if reads is not None and node.machine is not None and node.owed_writes is None:
        asked = space.with_node(state, region, owed_writes=state.ghost.value.acked)
        asked = asked._replace(budget=space.budgets.intern(reads))
        yield from deliver(space, asked, region, StrongReads(requests=(1,)), ("gets a strong read", region))


def _retry(space: StateSpace, state: State, region: int, number: int) -> Iterator[Move]:
    """A client that does not know the outcome retries with the same key, and the row decides (rule 9)."""
    member = state.members[region].value
    label = ("gets a retry of write", region, number)
    at = find_row(member, number)
    with label_violations(label):
        if at is None:
            after = space.with_member(state, region, postgres.append(member, region, "write", number))
        elif at <= member.confirmed:
            after = space.acknowledged(state, region, [number])
        else:
            return
    yield label, after


def find_row(member: postgres.Member, number: int) -> int | None:
    """The LSN of the row of a client's request, found by the ledger's unique key; None if there is no row."""
    return postgres.row_lsn(member, "write", number)


def _by_etcd(space: StateSpace, state: State) -> Iterator[Move]:
    for swap in state.etcd.value.unanswered_swaps:
        after = space.swapped(state, swap)
        if after is not None:
            yield ("etcd applies a late swap", -1, swap[1]), after
