"""Reports the agent's readiness, /status and metrics from the state that it already has."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from regions.agent import RegionAgent
from regions.identity import RegionName
from regions.member.ledger import OVERRIDE_SCOPES
from regions.member.overrides import describe
from regions.position import Position, encode_token

_STEP_SECONDS = Histogram(
    "palaver_failover_step_seconds",
    "Duration of a failover step: an effect on the member, or a phase of an epoch that this region leads.",
    ["step"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 30, 300),
)


for _step in ("RewindLedger", "CopyLedger"):
    # The series exist from the start, because Prometheus computes no increase for the first sample of a series.
    _STEP_SECONDS.labels(_step)

_QUORUM_STATES = ("quorum", "sync")
"""PostgreSQL's ``sync_state`` of a standby that commits wait for."""


def observe_step(step: str, took_ms: float) -> None:
    """Record the duration of a step in milliseconds."""
    _STEP_SECONDS.labels(step).observe(took_ms / 1000)


def missing(agent: RegionAgent) -> list[str]:
    """Return the reasons why the region is not ready, one sentence each."""
    current = agent.view.current
    if current is None:
        return ["no leadership record was received from etcd yet"]
    if agent.member is None or agent.role == "view":
        return []
    found = [agent.refusal] if agent.refusal is not None else []
    if not agent.member.running:
        found.append("the ledger member does not run")
    if agent.role == "leader" and current.phase != "serving":
        found.append(f"epoch {current.epoch} does not serve yet")
    ledger = agent.observation.ledger
    if agent.role == "follower" and (ledger is None or not ledger.receiving):
        found.append(f"the ledger member does not receive from {current.leader}")
    return found


def warnings(agent: RegionAgent) -> list[str]:
    """Return problems that do not affect readiness but need attention, one sentence each."""
    overrides = agent.overrides
    return [f"synchronous_commit is overridden: {describe(overrides)}"] if overrides else []


def voters_missing(agent: RegionAgent) -> dict[RegionName, bool]:
    """Return for each other voter whether commits cannot wait for it; empty if another region leads."""
    current = agent.view.current
    if current is None or agent.role != "leader":
        return {}
    there = {one.region for one in agent.observation.standbys if one.streaming and one.sync_state in _QUORUM_STATES}
    voters = current.voters or tuple(one.name for one in agent.topology.voters)
    return {voter: voter not in there for voter in voters if voter != current.leader}


def status(agent: RegionAgent) -> dict[str, object]:
    """Return the facts for /status."""
    current, edge = agent.view.current, agent.edge.status
    return {
        "cell": agent.topology.cell,
        "region": agent.topology.region,
        "epoch": current and current.epoch,
        "leader": current and current.leader,
        "phase": current and current.phase,
        "reason": current and current.reason,
        "since": current and current.since,
        "role": agent.role,
        "refusal": agent.refusal,
        "warnings": warnings(agent),
        "failover": _failover(agent),
        "member": _member(agent),
        "edge": {
            "version": edge.version,
            "update_rejected": edge.update_rejected,
            "confirmed": edge.confirmed,
            "reachable": edge.reachable,
        },
    }


def _failover(agent: RegionAgent) -> dict[str, object] | None:
    """Return the facts of the failover core; None before it runs."""
    switcher = agent.switcher
    facts, promise = switcher.facts, switcher.durable
    if facts is None:
        return None
    held_s = switcher.held_down_s()
    return {
        "state": switcher.state,
        "takes_writes": switcher.serving_epoch > 0,
        "voters": [] if facts.record is None else list(facts.record.voters),
        "joining": [] if facts.record is None else list(facts.record.joining),
        "drained": [] if facts.record is None else list(facts.record.drained),
        "automatic": facts.record is None or facts.record.automatic,
        "promise": promise and {"epoch": promise.epoch, "lineage": promise.lineage, "floor": promise.floor},
        "phi": {region: round(phi, 2) for region, phi in switcher.phi().items()},
        "suspects": sorted(facts.peers.suspected),
        "hears_majority": not facts.peers.in_minority,
        "diverged": facts.member.diverged,
        "held_down_s": held_s and round(held_s, 1),
        "heartbeats": {"sent": dict(switcher.links.sent), "dropped": dict(switcher.links.dropped)},
    }


def _member(agent: RegionAgent) -> dict[str, object] | None:
    if agent.member is None:
        return None
    current, observed = agent.view.current, agent.observation
    process = agent.member.process if agent.member.running else None
    ledger = observed.ledger
    position = None
    if ledger is not None and current is not None:
        position = encode_token(agent.topology.cell, Position(current.epoch, ledger.lsn))
    return {
        "state": "running" if process else "stopped",
        "pid": process and process.pid,
        "answers": ledger is not None,
        "in_recovery": ledger and ledger.in_recovery,
        "receiving": ledger and ledger.receiving,
        "position": position,
        "synchronous_standby_names": ledger and ledger.synchronous_standby_names,
        "standbys": [
            {
                "region": standby.region,
                "sync_state": standby.sync_state,
                "streaming": standby.streaming,
                "flush_lag_bytes": standby.flush_lag_bytes,
                "replay_lag_bytes": standby.replay_lag_bytes,
            }
            for standby in observed.standbys
        ],
        "voters_missing": [voter for voter, missing in voters_missing(agent).items() if missing],
        "overrides": None
        if agent.overrides is None
        else [{"scope": one.scope, "name": one.name, "value": one.value} for one in agent.overrides],
        "slots": [
            {
                "name": slot.name,
                "active": slot.active,
                "lost": slot.lost,
                "retained_bytes": slot.retained_bytes,
            }
            for slot in observed.slots
        ],
    }


class AgentCollector(Collector):
    """Converts the agent's state into metrics at each scrape."""

    def __init__(self, agent: RegionAgent) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families."""
        agent = self._agent
        current = agent.view.current
        yield _gauge("palaver_epoch", "Newest epoch that this process knows.", current.epoch if current else 0)
        role = GaugeMetricFamily("palaver_agent_role", "1 for the role of the region.", labels=["role"])
        for name in ("leader", "follower", "view"):
            role.add_metric([name], float(agent.role == name))
        yield role
        yield _gauge("palaver_agent_refuses", "Whether the agent cannot take part.", agent.refusal is not None)
        if agent.member is not None:
            yield from self._ledger()
            yield from self._signals()
        edge = agent.edge.status
        yield _gauge("palaver_edge_confirmed", "Whether Envoy has accepted the newest configuration.", edge.confirmed)
        yield CounterMetricFamily(
            "palaver_edge_update_rejected", "Configuration updates that Envoy rejected.", edge.update_rejected
        )

    def _ledger(self) -> Iterator[Metric]:
        assert self._agent.member is not None
        observed = self._agent.observation
        yield _gauge("palaver_ledger_up", "Whether PostgreSQL runs.", self._agent.member.running)
        yield _gauge("palaver_ledger_answers", "Whether PostgreSQL answers.", observed.ledger is not None)
        if observed.ledger is not None:
            yield _gauge("palaver_ledger_lsn_bytes", "End of the member's WAL on disk.", observed.ledger.lsn)
            yield _gauge("palaver_ledger_receiving", "Whether a WAL receiver streams.", observed.ledger.receiving)
        led = CounterMetricFamily(
            "palaver_wal_line_receivers", "WAL receivers that the proxy connected to a member.", labels=["ready"]
        )
        for ready, count in self._agent.member.proxy.connections.items():
            led.add_metric(["yes" if ready else "no"], count)
        yield led
        guessed = CounterMetricFamily(
            "palaver_wal_line_guesses", "WAL receivers for which WAL was requested in advance.", labels=["right"]
        )
        for right, count in self._agent.member.proxy.advance_requests.items():
            guessed.add_metric(["yes" if right else "no"], count)
        yield guessed
        refused = self._agent.member.proxy.timeline_refusals
        yield CounterMetricFamily(
            "palaver_wal_line_refusals", "WAL receivers that requested a timeline which the leader left.", value=refused
        )
        flush = GaugeMetricFamily(
            "palaver_standby_flush_lag_bytes", "Bytes of WAL that a standby has not flushed.", labels=["standby"]
        )
        replay = GaugeMetricFamily(
            "palaver_standby_replay_lag_bytes", "Bytes of WAL that a standby has not replayed.", labels=["standby"]
        )
        seconds = GaugeMetricFamily(
            "palaver_standby_flush_lag_seconds",
            "Time until a standby reports that it has flushed WAL.",
            labels=["standby"],
        )
        quorum = GaugeMetricFamily("palaver_standby_quorum", "Whether commits wait for a standby.", labels=["standby"])
        for standby in observed.standbys:
            flush.add_metric([standby.region], standby.flush_lag_bytes)
            replay.add_metric([standby.region], standby.replay_lag_bytes)
            seconds.add_metric([standby.region], standby.flush_lag_s)
            quorum.add_metric([standby.region], float(standby.sync_state in _QUORUM_STATES))
        retained = GaugeMetricFamily(
            "palaver_slot_retained_bytes", "Bytes of WAL that a slot retains.", labels=["slot"]
        )
        lost = GaugeMetricFamily("palaver_slot_lost", "Whether a slot was lost.", labels=["slot"])
        for slot in observed.slots:
            retained.add_metric([slot.name], slot.retained_bytes)
            lost.add_metric([slot.name], float(slot.lost))
        yield from (flush, replay, seconds, quorum, retained, lost)

    def _signals(self) -> Iterator[Metric]:
        """Yield the metrics that alerts use. Voters and overrides have series on the leader only."""
        agent, facts = self._agent, self._agent.switcher.facts
        yield _gauge(
            "palaver_member_diverged",
            "Whether the member has WAL that the leader's history does not have.",
            facts is not None and facts.member.diverged,
        )
        missing = GaugeMetricFamily(
            "palaver_voter_missing", "Whether commits cannot wait for another voter.", labels=["voter"]
        )
        for voter, is_missing in voters_missing(agent).items():
            missing.add_metric([voter], float(is_missing))
        yield missing
        overrides = GaugeMetricFamily(
            "palaver_ledger_commit_overrides",
            "Settings that make synchronous_commit weaker than on.",
            labels=["scope"],
        )
        if agent.overrides is not None:
            found = Counter(one.scope for one in agent.overrides)
            for scope in OVERRIDE_SCOPES:
                overrides.add_metric([scope], found[scope])
        yield overrides


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=float(value))
