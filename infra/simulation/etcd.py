"""Models etcd as its clients see it: one register with a revision. Models the guarantees of etcd, not Raft.

A swap is applied at one instant or never. Its answer can be lost, and it can be applied after its client has given up.
A linearizable read sees everything that was written before it began. A serializable read and a watch see what the etcd
member in the client's own region has applied; that member lags, and stops while its region is partitioned. After the
loss of the etcd leader's region, no request is answered until the members elect another leader.
Source: failover.md, "etcd as its clients see it".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from infra.simulation.network import Network
from infra.simulation.scheduler import Scheduler
from regions.identity import RegionName
from regions.leadership import Leadership

ATTEMPT_S = 0.8
"""Time limit of one attempt of a client (failover.md)."""

ATTEMPTS_MAX = 3
ELECTION_S = (0.5, 0.85)
SWAP_APPLIED_LATE = 0.3
"""Share of swaps that etcd keeps while it has no leader and may apply after their client has given up."""

WATCH_LAG_S = (0.0005, 0.004)
WATCH_SKIPS = 0.1
"""Share of deliveries in which a watch that is behind receives only the newest revision (compaction)."""

Outcome = Literal["applied", "lost", "unknown"]
ReadAnswer = Callable[[int, Leadership | None], None]
SwapAnswer = Callable[[Outcome, int], None]
Watcher = Callable[[int, Leadership], None]


class Etcd:
    """The register and its members, one in each region; only the voters' members count for a majority.

    Attributes:
        log: (revision, record) of each record that was written.
        leader: Region of etcd's leader; None during an election.
        outage: Number of outages in force; while it is positive, etcd answers only serializable reads.
        lag_s: Extra lag of the watch in seconds, by region.
        written: Called with each revision and record as it is written.
    """

    def __init__(  # noqa: PLR0913 - its dependencies
        self,
        scheduler: Scheduler,
        network: Network,
        *,
        regions: tuple[RegionName, ...],
        voters: tuple[RegionName, ...],
        leader: RegionName,
        written: Watcher,
    ) -> None:
        self._scheduler = scheduler
        self._network = network
        self._voters = voters
        self._majority = len(voters) // 2 + 1
        self._down: dict[RegionName, bool] = {}
        self._applied: dict[RegionName, int] = {}
        self._watchers: dict[RegionName, Watcher] = {}
        self._watched = dict.fromkeys(regions, 0)
        self._watch_time: dict[RegionName, float] = {}
        self._electing = False
        self.log: list[tuple[int, Leadership]] = []
        self.leader: RegionName | None = leader
        self.outage = 0
        self.lag_s: dict[RegionName, float] = {}
        self.written = written
        network.on_change(self.changed)

    def set_down(self, region: RegionName, *, down: bool) -> None:
        """Stop a region's etcd member, or start it again with the records that it had applied."""
        self._down[region] = down
        self.changed()

    def watch(self, region: RegionName, watcher: Watcher) -> None:
        """Start the watch of a region's agent at the newest record that the region's etcd member has applied."""
        self._watchers[region] = watcher
        self._watched[region] = max(0, self._applied.get(region, 0) - 1)
        self._wake_watch(region)

    def unwatch(self, region: RegionName) -> None:
        """End the watch of a region's agent."""
        self._watchers.pop(region, None)

    def view(self, region: RegionName) -> Leadership | None:
        """The newest record that the etcd member of a region has applied; None if it has none."""
        applied = self._applied.get(region, 0)
        return self.log[applied - 1][1] if applied else None

    @property
    def record(self) -> Leadership | None:
        """The newest committed record, which no client sees directly."""
        return self.log[-1][1] if self.log else None

    def serves(self, region: RegionName, endpoint: RegionName) -> bool:
        """Whether ``endpoint`` can give a client in ``region`` a linearizable answer."""
        leader = self.leader
        return (
            leader is not None
            and self._can_commit(leader)
            and not self._down.get(endpoint, False)
            and self._network.is_connected(region, endpoint)
            and self._network.is_connected(endpoint, leader)
        )

    def _can_commit(self, leader: RegionName) -> bool:
        """Whether a leader can commit: a majority of the voters' members is connected to it."""
        if self.outage or self._down.get(leader, False):
            return False
        is_connected = self._network.is_connected
        reached = sum(1 for voter in self._voters if not self._down.get(voter, False) and is_connected(voter, leader))
        return reached >= self._majority

    def changed(self) -> None:
        """Begin an election if the leader cannot commit; else send records that members have not applied."""
        if (self.leader is None or not self._can_commit(self.leader)) and not self._electing:
            self._electing = True
            self._scheduler.after(self._scheduler.between(*ELECTION_S), self._elect)
        elif self.leader is not None:
            self._spread()

    def _elect(self) -> None:
        self._electing = False
        if self.leader is None or not self._can_commit(self.leader):
            # Only members with a majority can win; an election without one leaves etcd without a leader.
            able = [voter for voter in self._voters if self._can_commit(voter)]
            self.leader = self._scheduler.random.choice(able) if able else None
            self._scheduler.trace_line(f"etcd elects {self.leader}")
        if self.leader is not None:
            self._spread()

    def delay(self, region: RegionName, endpoint: RegionName) -> float:
        """Seconds from a client's request through its endpoint to the commit at etcd's leader."""
        leader = self.leader
        assert leader is not None, "a request without a leader"
        network = self._network
        nearest = 2 * network.delay(leader, next(voter for voter in self._voters if voter != leader))
        return network.delay(region, endpoint) + network.delay(endpoint, leader) + nearest

    def swap(self, expected: int, record: Leadership) -> int | None:
        """Replace the record now, if its revision is ``expected``. Returns the new revision, or None if it is not."""
        revision = self.log[-1][0] if self.log else 0
        if revision != expected:
            return None
        revision += 1 + self._scheduler.random.randrange(3)  # etcd's revision counts all keys
        self.log.append((revision, record))
        self.written(revision, record)
        self._spread()
        return revision

    def newest(self) -> tuple[int, Leadership | None]:
        """The revision and record that a linearizable read returns now; revision 0 without a record."""
        return self.log[-1] if self.log else (0, None)

    def applied(self, region: RegionName) -> tuple[int, Leadership | None]:
        """The revision and record that a serializable read in a region returns; revision 0 without a record."""
        index = self._applied.get(region, 0)
        return self.log[index - 1] if index else (0, None)

    def is_down(self, region: RegionName) -> bool:
        """Whether a region's etcd member does not run."""
        return self._down.get(region, False)

    def _spread(self) -> None:
        leader = self.leader
        if leader is None:
            return
        behind = len(self.log)
        for region in self._watched:
            if self._applied.get(region, 0) < behind and self._network.is_open(leader, region):
                self._scheduler.after(self._network.delay(leader, region), self._apply, region, behind)

    def _apply(self, region: RegionName, upto: int) -> None:
        if self._down.get(region, False) or self._applied.get(region, 0) >= upto:
            return
        self._applied[region] = upto
        self._wake_watch(region)

    def _wake_watch(self, region: RegionName) -> None:
        if region not in self._watchers:
            return
        lag = self._scheduler.between(*WATCH_LAG_S) + self.lag_s.get(region, 0.0)
        time = max(self._scheduler.now + lag, self._watch_time.get(region, 0.0))
        self._watch_time[region] = time
        self._scheduler.at(time, self._deliver, region, self._applied.get(region, 0))

    def _deliver(self, region: RegionName, upto: int) -> None:
        start = self._watched[region]
        watcher = self._watchers.get(region)
        if watcher is None or start >= upto:
            return
        self._watched[region] = upto
        if upto - start > 1 and self._scheduler.chance(WATCH_SKIPS):
            start = upto - 1
        for revision, record in self.log[start:upto]:
            watcher(revision, record)


class EtcdClient:
    """An agent's etcd client: uses one endpoint, changes to the next one after an error, and never retries a swap."""

    __slots__ = ("_endpoint", "_endpoints", "_etcd", "_network", "_region", "_scheduler")

    def __init__(
        self, scheduler: Scheduler, network: Network, etcd: Etcd, region: RegionName, endpoints: tuple[RegionName, ...]
    ) -> None:
        self._scheduler = scheduler
        self._network = network
        self._etcd = etcd
        self._region = region
        self._endpoints = (region, *(endpoint for endpoint in endpoints if endpoint != region))
        self._endpoint = 0

    def read(self, answer: ReadAnswer, failed: Callable[[], None], *, linearizable: bool) -> None:
        """Read the record. Calls either ``answer`` or ``failed``, exactly once."""
        if linearizable:
            self._attempt(answer, failed, 1)
        elif not self._etcd.is_down(self._region):
            self._scheduler.after(0.001, self._answer_local, answer)
        else:
            self._scheduler.after(ATTEMPT_S, failed)

    def _answer_local(self, answer: ReadAnswer) -> None:
        answer(*self._etcd.applied(self._region))

    def _attempt(self, answer: ReadAnswer, failed: Callable[[], None], number: int) -> None:
        endpoint = self._endpoints[self._endpoint]
        if self._etcd.serves(self._region, endpoint):
            seconds = self._etcd.delay(self._region, endpoint)
            self._scheduler.after(seconds, self._arrived, answer, failed, number)
        else:
            self._scheduler.after(ATTEMPT_S, self._next, answer, failed, number)

    def _arrived(self, answer: ReadAnswer, failed: Callable[[], None], number: int) -> None:
        endpoint = self._endpoints[self._endpoint]
        if not self._etcd.serves(self._region, endpoint):
            self._scheduler.after(ATTEMPT_S / 2, self._next, answer, failed, number)
            return
        leader = self._etcd.leader
        assert leader is not None, "an answer without a leader"
        back = self._network.delay(leader, endpoint) + self._network.delay(endpoint, self._region)
        self._scheduler.after(back, answer, *self._etcd.newest())

    def _next(self, answer: ReadAnswer, failed: Callable[[], None], number: int) -> None:
        self._endpoint = (self._endpoint + 1) % len(self._endpoints)
        if number >= ATTEMPTS_MAX:
            failed()
        else:
            self._attempt(answer, failed, number + 1)

    def swap(self, expected: int, record: Leadership, answer: SwapAnswer) -> None:
        """Try a compare-and-swap of the record once. Calls ``answer`` exactly once."""
        request = _Swap(expected, record, answer, self._endpoints[self._endpoint])
        if self._etcd.serves(self._region, request.endpoint):
            seconds = self._etcd.delay(self._region, request.endpoint)
            self._scheduler.after(seconds, self._apply_swap, request)
        self._scheduler.after(ATTEMPT_S, self._give_up, request)

    def _apply_swap(self, request: _Swap) -> None:
        etcd = self._etcd
        if etcd.leader is None or not etcd.serves(etcd.leader, etcd.leader):
            if not request.late and self._scheduler.chance(SWAP_APPLIED_LATE):
                request.late = True
                self._scheduler.after(self._scheduler.between(0.3, 4.0), self._apply_swap, request)
            return
        revision = etcd.swap(request.expected, request.record)
        leader, endpoint, network = etcd.leader, request.endpoint, self._network
        if network.is_open(leader, endpoint) and network.is_open(endpoint, self._region):
            back = network.delay(leader, endpoint) + network.delay(endpoint, self._region)
            self._scheduler.after(back, self._answered, request, revision)

    def _answered(self, request: _Swap, revision: int | None) -> None:
        if not request.answered:
            request.answered = True
            request.answer("lost" if revision is None else "applied", revision or 0)

    def _give_up(self, request: _Swap) -> None:
        if not request.answered:
            request.answered = True
            self._endpoint = (self._endpoint + 1) % len(self._endpoints)
            request.answer("unknown", 0)


class _Swap:
    __slots__ = ("answer", "answered", "endpoint", "expected", "late", "record")

    def __init__(self, expected: int, record: Leadership, answer: SwapAnswer, endpoint: RegionName) -> None:
        self.expected = expected
        self.record = record
        self.answer = answer
        self.endpoint = endpoint
        self.answered = False
        self.late = False
