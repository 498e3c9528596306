"""The leadership of a cell as etcd has it: read, swapped and watched through any endpoint that answers.

Decides which endpoint is asked, when to ask another, and when a lost answer makes an outcome unknown.
Refuses to know what a leadership is for and when it should change (``regions.failover``).

Sources: failover.md, "etcd as its clients see it"; rule 14 (a lease is a hint, the compare-and-swap is
the safety), which is why nothing here uses a lease.
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
"""A read asks every endpoint this often before it gives up: the second round finds a new etcd leader."""

SHUN_S = 5.0
"""An endpoint that failed is asked last for this long; then the nearest one is preferred again."""

PAUSE_S = 0.1
PAUSE_S_MAX = 1.0
"""Between two rounds in which every endpoint failed; doubles, for a watch has all the time there is."""

HISTORY_MAX = 500
"""Epochs that are shown: an entry is a few hundred bytes, and etcd answers 1.5 MB at most."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class CoordinationError(Exception):
    """The leadership could not be read or changed."""


class EtcdUnavailable(CoordinationError):
    """No endpoint gave an answer; nothing was changed by this call."""


class OutcomeUnknown(CoordinationError):
    """The answer of a compare-and-swap was lost: it may be applied. Read again before anything else."""


def etcd_endpoints(topology: Topology) -> tuple[Address, ...]:
    """Return the etcd endpoints of a deployment, the own region's first."""
    own = (topology.own, *topology.others)
    return tuple(region.etcd for region in own if region.etcd is not None)


class Coordination:
    """A client of the deployment's etcd. Use it as an asynchronous context manager."""

    def __init__(self, endpoints: Sequence[Address], user: str | None, password: str | None) -> None:
        """Prepare connections to ``endpoints``, the preferred one first; user None: no authentication."""
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
        """Return the leadership and the revision that wrote it, or None before the first.

        Args:
            cell: Whose.
            linearizable: Whether it must see everything that was written before it was called. Else any member of
                etcd answers, also one that is cut off.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
            CorruptRecord: The record is none.
        """
        stored, _ = await self._any_endpoint(lambda endpoint: endpoint.read(_key(cell), linearizable=linearizable))
        return None if stored is None else (Leadership.from_json(stored.value), stored.mod_revision)

    async def register_start(self, region: RegionName) -> int:
        """Write that a region's agent has started, and return etcd's revision: higher at each call.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
        """
        return await self._any_endpoint(lambda endpoint: endpoint.put(f"/palaver/agents/{region}", b"started"))

    async def write_history(self, cell: CellId, epoch: Epoch, entry: bytes) -> None:
        """Store what became of an epoch, in place of what was known of it.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
        """
        await self._any_endpoint(lambda endpoint: endpoint.put(f"{_history(cell)}{epoch:020d}", entry))

    async def read_history(self, cell: CellId) -> list[bytes]:
        """Return what became of the newest epochs, the oldest first, ``HISTORY_MAX`` at most.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
        """
        return await self._any_endpoint(lambda endpoint: endpoint.read_last(_history(cell), HISTORY_MAX))

    async def swap_leadership(self, cell: CellId, new: Leadership, expected_revision: int) -> int | None:
        """Store ``new`` when the record is still the one written at ``expected_revision`` (0: there is none).

        Returns the revision that stored it; None when it was not stored.

        It is tried once, at one endpoint: a retry of a swap that was applied would be told that it lost.

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
        """Yield what `watch_records` yields, without its revisions."""
        async with aclosing(self.watch_records(cell)) as records:
            async for _, leadership in records:
                yield leadership

    async def watch_records(self, cell: CellId) -> AsyncGenerator[tuple[int, Leadership]]:
        """Yield the current leadership, when there is one, then every change, in order, for ever.

        Each comes with the revision that wrote it.

        No change is missed or told twice while endpoints fail; only changes that etcd has compacted
        away while none could be reached are skipped, and the current one is told instead.

        Raises:
            AccessRefused: The user or password is wrong.
            CorruptRecord: A record is none.
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
        """Yield what an endpoint's watch yields; end when that is not the nearest one and the nearest answers again.

        A watch is told of a change as late as its endpoint is, which in another region is a round trip.
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
                            # Whoever watches goes on from the last revision that it was told of: nothing is missed.
                            return
                        stored = await coming
                    finally:
                        await _cancelled(coming)
                    yield stored
        finally:
            await _cancelled(back)

    async def _until_answered(self, endpoint: Endpoint, key: str) -> None:
        """Return when an endpoint has answered, and has all that the others have."""
        while True:
            await asyncio.sleep(SHUN_S)
            try:
                await endpoint.read(key)
            except (EndpointFailed, AccessRefused) as error:
                _log.debug("the nearest etcd endpoint does not answer yet: %s", error)
            else:
                self._failed_at.pop(endpoint.address, None)
                return

    async def enable_authentication(self) -> None:
        """Make etcd ask for the user and password; harmless when it does, or another region just did.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: It asks for another password.
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
        """Return the name of the member that leads etcd, as the first that answers has it; None while none does.

        Raises:
            EtcdUnavailable: No endpoint answered.
            AccessRefused: The user or password is wrong.
        """

        async def ask(endpoint: Endpoint) -> str | None:
            _, leader = await endpoint.member_and_leader()
            return (await endpoint.voters()).get(leader) if leader else None

        return await self._any_endpoint(ask)

    async def move_etcd_leader(self, address: Address, to: Sequence[str]) -> str | None:
        """Hand etcd's leadership on if the member at this address has it (rule 15).

        Args:
            address: Of the member that shall not lead.
            to: The names of the members that may, in order of preference.

        Returns:
            Who has it now; None when nothing had to be done.

        Raises:
            EtcdUnavailable: The member does not answer, or no other would take it.
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
        failure = "there is no other member that answers"
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
        raise EtcdUnavailable(f"etcd's leadership stays: {failure}")

    async def _members_that_answer(self) -> set[int]:
        """Return the ids of etcd's members that can be reached from here."""

        async def member_of(endpoint: Endpoint) -> int | None:
            try:
                member, _ = await endpoint.member_and_leader()
            except EndpointFailed:
                return None
            return member

        answers = await asyncio.gather(*map(member_of, self._endpoints))
        return {member for member in answers if member is not None}

    async def _any_endpoint(self, operation: Callable[[Endpoint], Awaitable[_T]]) -> _T:
        """Return the first answer to an operation that may be repeated."""
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
        """The endpoints, preferred first, those that failed lately last (the longest ago first)."""
        assert self._endpoints, "use it as a context manager"
        recent = time.monotonic() - SHUN_S

        def shunned(endpoint: Endpoint) -> float:
            failed_at = self._failed_at.get(endpoint.address, 0.0)
            return failed_at if failed_at > recent else 0.0

        return sorted(self._endpoints, key=shunned)

    def _note_failure(self, endpoint: Endpoint, error: EndpointFailed) -> None:
        _log.debug("etcd endpoint failed: %s", error)
        self._failed_at[endpoint.address] = time.monotonic()

    def _all_failed(self) -> bool:
        recent = time.monotonic() - PAUSE_S_MAX
        return all(self._failed_at.get(one, 0.0) > recent for one in self._addresses)


class LeadershipView:
    """The latest leadership that this process has heard of; fed by ``run`` in a task of its owner."""

    def __init__(self, coordination: Coordination, cell: CellId) -> None:
        self.current: Leadership | None = None
        self._coordination = coordination
        self._cell = cell
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Watch for ever.

        Raises:
            AccessRefused: The user or password is wrong.
            CorruptRecord: A record is none.
        """
        async for leadership in self._coordination.watch_leadership(self._cell):
            if self.current is None or leadership.epoch >= self.current.epoch:
                self._become(leadership)

    def offer(self, leadership: Leadership) -> None:
        """Take an epoch of which somebody else has told before etcd."""
        if self.current is None or leadership.epoch > self.current.epoch:
            self._become(leadership)

    def _become(self, leadership: Leadership) -> None:
        self.current = leadership
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def next_after(self, known: Leadership | None) -> Leadership:
        """Wait until the latest leadership is another than ``known`` and return it."""
        while self.current is None or self.current == known:
            await self._changed.wait()
        return self.current


async def _cancelled(task: "asyncio.Future[Any]") -> None:
    """End a task; what it would have said is of no interest any more."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()


def _history(cell: CellId) -> str:
    return f"/palaver/cells/{cell}/history/"


def _key(cell: CellId) -> str:
    return f"/palaver/cells/{cell}/leadership"
