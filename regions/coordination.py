"""Reads, swaps and watches the leadership record of a cell through any etcd endpoint that answers.

Decides which endpoint gets a request, when to try another, and when a lost answer makes an outcome unknown. Does not
know when the leadership should change (``regions.failover``).

Sources: failover.md, "etcd as its clients see it"; rule 14 (a lease is a hint, safety comes from compare-and-swap), so
nothing here uses a lease.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Self, TypeVar

from regions.etcd import (
    AccessRefused,
    Endpoint,
    EndpointFailed,
    RevisionCompacted,
    StoredValue,
)
from regions.identity import CellId, Epoch, RegionName
from regions.leadership import CorruptRecord, Leadership, Phase
from regions.topology import Address, Topology

__all__ = [
    "AccessRefused",
    "Coordination",
    "CoordinationError",
    "CorruptRecord",
    "EtcdUnavailable",
    "Leadership",
    "LeadershipView",
    "OutcomeUnknown",
    "Phase",
    "etcd_endpoints",
]

ROUNDS_MAX = 2
"""Number of times that a read tries every endpoint; the second round finds a new etcd leader."""

SHUN_S = 5.0
"""How long an endpoint that failed is tried last; then the nearest endpoint is preferred again."""

PAUSE_S = 0.1
PAUSE_S_MAX = 1.0
"""Pause after a round in which every endpoint failed; it doubles up to the maximum, because a watch has no time
limit."""

HISTORY_MAX = 500
"""Number of epochs in a history answer: an entry has a few hundred bytes, and an etcd answer at most 1.5 MB."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class CoordinationError(Exception):
    """The leadership record could not be read or changed."""


class EtcdUnavailable(CoordinationError):
    """No endpoint answered; this call changed nothing."""


class OutcomeUnknown(CoordinationError):
    """The answer of a compare-and-swap was lost, so it may be applied. Read the record again before anything else."""


def etcd_endpoints(topology: Topology) -> tuple[Address, ...]:
    """Return the etcd endpoints of a deployment, the own region's first."""
    own = (topology.own, *topology.others)
    return tuple(region.etcd for region in own if region.etcd is not None)


class Coordination:
    """A client of the deployment's etcd. Use it as an asynchronous context manager."""

    def __init__(self, endpoints: Sequence[Address], user: str | None, password: str | None) -> None:
        """Initialise a client of ``endpoints``, the preferred one first; with user None it does not authenticate."""
        assert endpoints, "etcd has no endpoint"
        self._addresses = tuple(endpoints)
        self._user = user
        self._password = password
        self._endpoints: tuple[Endpoint, ...] = ()
        self._failed_at: dict[Address, float] = {}

    async def __aenter__(self) -> Self:
        self._endpoints = tuple(Endpoint(one, self._user, self._password) for one in self._addresses)
        return self

    async def __aexit__(self, *_: object) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()

    async def read_leadership(self, cell: CellId, *, linearizable: bool = True) -> tuple[Leadership, int] | None:
        """Return the leadership record and the revision that wrote it, or None if there is none yet.

        Args:
            cell: The cell.
            linearizable: Whether the read must see every write that completed before it. Otherwise it is serializable:
                any etcd member answers, also a partitioned one.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
            CorruptRecord: The record cannot be parsed.
        """
        stored, _ = await self._any_endpoint(lambda endpoint: endpoint.read(_key(cell), linearizable=linearizable))
        return None if stored is None else (Leadership.from_json(stored.value), stored.mod_revision)

    async def register_start(self, region: RegionName) -> int:
        """Register a start of a region's agent, and return etcd's revision, which increases at each call.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
        """
        return await self._any_endpoint(lambda endpoint: endpoint.put(f"/palaver/agents/{region}", b"started"))

    async def write_history(self, cell: CellId, epoch: Epoch, entry: bytes) -> None:
        """Store the history entry of an epoch, and replace an earlier one.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
        """
        await self._any_endpoint(lambda endpoint: endpoint.put(f"{_history(cell)}{epoch:020d}", entry))

    async def read_history(self, cell: CellId) -> list[bytes]:
        """Return the history entries of the newest epochs, oldest first, at most ``HISTORY_MAX``.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
        """
        return await self._any_endpoint(lambda endpoint: endpoint.read_last(_history(cell), HISTORY_MAX))

    async def swap_leadership(self, cell: CellId, new: Leadership, expected_revision: int) -> int | None:
        """Store ``new`` if the record is still the one of ``expected_revision`` (0: there is no record).

        There is one attempt, at one endpoint: a retry of a swap that was applied would fail the comparison.

        Returns:
            The revision that stored it; None if the record had another revision.

        Raises:
            OutcomeUnknown: The answer was lost.
            AccessRefused: The user or password is wrong.
        """
        endpoint = self._in_order()[0]
        try:
            return await endpoint.compare_and_swap(_key(cell), new.to_json(), expected_revision)
        except EndpointFailed as error:
            self._note_failure(endpoint, error)
            raise OutcomeUnknown(f"leadership of {cell}, epoch {new.epoch}: {error}") from error

    async def watch_leadership(self, cell: CellId) -> AsyncGenerator[Leadership]:
        """Yield the records of `watch_records` without their revisions."""
        async with aclosing(self.watch_records(cell)) as records:
            async for _, leadership in records:
                yield leadership

    async def watch_records(self, cell: CellId) -> AsyncGenerator[tuple[int, Leadership]]:
        """Yield the current record, if there is one, then every later one, in order, with the revision that wrote it.

        While endpoints fail, no record is missed or repeated, except that records which etcd compacted while no
        endpoint could be reached are skipped in favour of the current one. The iteration does not end.

        Raises:
            AccessRefused: The user or password is wrong.
            CorruptRecord: A record cannot be parsed.
        """
        seen, revision, pause_s = 0, 0, PAUSE_S
        while True:
            endpoint = self._in_order()[0]
            try:
                if revision == 0:
                    stored, revision = await endpoint.read(_key(cell))
                    if stored is not None and stored.mod_revision > seen:
                        seen = stored.mod_revision
                        yield stored.mod_revision, Leadership.from_json(stored.value)
                async with aclosing(self._changes(endpoint, _key(cell), revision + 1)) as changes:
                    async for stored in changes:
                        seen = revision = stored.mod_revision
                        pause_s = PAUSE_S
                        yield stored.mod_revision, Leadership.from_json(stored.value)
            except RevisionCompacted:
                revision = 0
            except EndpointFailed as error:
                self._note_failure(endpoint, error)
                if self._all_failed():
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _changes(self, endpoint: Endpoint, key: str, start_revision: int) -> AsyncGenerator[StoredValue]:
        """Yield the values of an endpoint's watch; end if it is not the nearest endpoint and that answers again.

        A watch at an endpoint of another region reports a change a round trip later.
        """
        nearest = self._endpoints[0]
        if endpoint is nearest:
            async with aclosing(endpoint.watch(key, start_revision)) as changes:
                async for stored in changes:
                    yield stored
            return
        back = asyncio.ensure_future(self._until_answered(nearest, key))
        try:
            async with aclosing(endpoint.watch(key, start_revision)) as changes:
                while True:
                    coming = asyncio.ensure_future(anext(changes))
                    try:
                        await asyncio.wait((coming, back), return_when=asyncio.FIRST_COMPLETED)
                        if back.done() and not coming.done():
                            # The caller resumes after the last revision that it received, so no change is missed.
                            return
                        stored = await coming
                    finally:
                        await _cancelled(coming)
                    yield stored
        finally:
            await _cancelled(back)

    async def _until_answered(self, endpoint: Endpoint, key: str) -> None:
        """Return when an endpoint has answered a linearizable read."""
        while True:
            await asyncio.sleep(SHUN_S)
            try:
                await endpoint.read(key)
            except (EndpointFailed, AccessRefused) as error:
                _log.debug("etcd: the nearest endpoint does not answer yet: %s", error)
            else:
                self._failed_at.pop(endpoint.address, None)
                return

    async def enable_authentication(self) -> None:
        """Enable authentication in etcd with this user and password; can be repeated, also by several regions at once.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: etcd has another password.
        """
        assert self._user is not None, "authentication needs a user"

        async def enable(endpoint: Endpoint) -> None:
            if await endpoint.authenticate():
                return
            await endpoint.enable_authentication()
            if not await endpoint.authenticate():
                raise EndpointFailed(f"{endpoint.address}: authentication is not enabled yet")

        await self._any_endpoint(enable)

    async def etcd_leader(self) -> str | None:
        """Return the name of etcd's leader as the first endpoint that answers knows it; None if there is no leader.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
        """

        async def ask(endpoint: Endpoint) -> str | None:
            _, leader = await endpoint.member_and_leader()
            return (await endpoint.voters()).get(leader) if leader else None

        return await self._any_endpoint(ask)

    async def move_etcd_leader(self, address: Address, to: Sequence[str]) -> str | None:
        """Transfer etcd's leadership if the member at this address has it (rule 15).

        Args:
            address: Client address of the member that should not lead.
            to: Names of the members that may lead, in order of preference.

        Returns:
            Name of the new leader; None if the member at this address does not lead.

        Raises:
            EtcdUnavailable: The member does not answer, or no other member took the leadership.
        """
        own = next((endpoint for endpoint in self._endpoints if endpoint.address == address), None)
        if own is None:
            return None
        try:
            member, leader = await own.member_and_leader()
            if member != leader:
                return None
            alive = await self._members_that_answer()
            others = {name: number for number, name in (await own.voters()).items() if number != member}
        except EndpointFailed as error:
            raise EtcdUnavailable(str(error)) from error
        failure = "no other member answers"
        for name in to:
            # etcd accepts no writes while it waits for an unreachable member to take the leadership.
            if others.get(name) not in alive:
                continue
            try:
                await own.move_leader(others[name])
            except EndpointFailed as error:
                failure = str(error)
            else:
                return name
        raise EtcdUnavailable(f"etcd's leadership was not transferred: {failure}")

    async def _members_that_answer(self) -> set[int]:
        """Return the ids of the etcd members that answer."""

        async def member_of(endpoint: Endpoint) -> int | None:
            try:
                member, _ = await endpoint.member_and_leader()
            except EndpointFailed:
                return None
            return member

        answers = await asyncio.gather(*map(member_of, self._endpoints))
        return {member for member in answers if member is not None}

    async def _any_endpoint(self, operation: Callable[[Endpoint], Awaitable[_T]]) -> _T:
        """Return the first answer to an operation that can be repeated."""
        failures: list[str] = []
        for round_number in range(ROUNDS_MAX):
            if round_number:
                await asyncio.sleep(PAUSE_S)
            for endpoint in self._in_order():
                try:
                    return await operation(endpoint)
                except EndpointFailed as error:
                    self._note_failure(endpoint, error)
                    failures.append(str(error))
        raise EtcdUnavailable("no etcd endpoint answered: " + "; ".join(failures[-len(self._endpoints) :]))

    def _in_order(self) -> list[Endpoint]:
        """Return the endpoints by preference; those that failed within `SHUN_S` come last, oldest failure first."""
        assert self._endpoints, "use it as a context manager"
        recent = time.monotonic() - SHUN_S

        def shunned(endpoint: Endpoint) -> float:
            failed_at = self._failed_at.get(endpoint.address, 0.0)
            return failed_at if failed_at > recent else 0.0

        return sorted(self._endpoints, key=shunned)

    def _note_failure(self, endpoint: Endpoint, error: EndpointFailed) -> None:
        _log.debug("etcd: an endpoint failed: %s", error)
        self._failed_at[endpoint.address] = time.monotonic()

    def _all_failed(self) -> bool:
        recent = time.monotonic() - PAUSE_S_MAX
        return all(self._failed_at.get(one, 0.0) > recent for one in self._addresses)


class LeadershipView:
    """The latest leadership that this process knows. The owner runs ``run`` in a task, which updates it."""

    def __init__(self, coordination: Coordination, cell: CellId) -> None:
        self.current: Leadership | None = None
        self._coordination = coordination
        self._cell = cell
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Watch etcd until cancelled.

        Raises:
            AccessRefused: The user or password is wrong.
            CorruptRecord: A record cannot be parsed.
        """
        async for leadership in self._coordination.watch_leadership(self._cell):
            if self.current is None or leadership.epoch >= self.current.epoch:
                self._become(leadership)

    def offer(self, leadership: Leadership) -> None:
        """Take the record of a newer epoch that became known before etcd reported it."""
        if self.current is None or leadership.epoch > self.current.epoch:
            self._become(leadership)

    def _become(self, leadership: Leadership) -> None:
        self.current = leadership
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def next_after(self, known: Leadership | None) -> Leadership:
        """Wait until the latest leadership differs from ``known``, and return it."""
        while self.current is None or self.current == known:
            await self._changed.wait()
        return self.current


async def _cancelled(task: "asyncio.Future[Any]") -> None:
    """Cancel a task, wait for its end and ignore its result."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()


def _history(cell: CellId) -> str:
    return f"/palaver/cells/{cell}/history/"


def _key(cell: CellId) -> str:
    return f"/palaver/cells/{cell}/leadership"
