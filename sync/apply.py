"""Applies batches of changes to the view, each change exactly once in effect.

Decides which changes are one transaction of the view, which are dropped as already applied, and which become dead
letters. Does not know what rows mean; the `Projection` does. A batch is one statement, and so one round trip and one
transaction; only a batch with a change that the view rejects needs more. **One transaction writes a change and the
checkpoint that covers it: after a crash the view has a change if the checkpoint covers it. If the view rejects a
change, the change becomes a row of `dead_letters` with the reason, and does not stop other changes. A change that does
not fit the registry stops apply before it, because a newer version of this process can apply it.**

`on_applied` reports the effects of a committed batch. This report can be lost: the view's reply does not arrive, or a
task ends between the commit and the call. Apply then drops the batch as already applied. Therefore apply calls
`on_checkpoint_read` each time it has read the checkpoint: effects up to it may not have been reported.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import asyncpg

from regions.identity import CellId
from regions.position import ZERO, Position
from sync.change import Change, Item, Progress, SyncError, Transaction
from sync.channel import Channel
from sync.checkpoint import (
    CheckpointMove,
    advance_checkpoint,
    lock_apply,
    raising_checkpoint_moved,
    read_checkpoint,
    read_freshness,
)
from sync.dead_letters import DeadLetters
from sync.lag import LagMeter
from sync.registry import Registry, SchemaUnknown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from sync.checkpoint import ViewConnection

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
"""The view runs in the same region. When it is back, apply continues within two seconds."""

SCHEMA_UNKNOWN_PAUSE_S: Final = 30.0
"""Pause after a change that does not fit the registry. Only a new version of this process, or of the ledger, helps."""

STATEMENT_TIMEOUT_S: Final = 30.0
"""A batch takes milliseconds. A statement that takes this long waits for a broken component."""

POISON_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
"""SQLSTATE classes 22, 23 and 54: the change itself is invalid, and a retry cannot succeed. Apply retries after any
other error of the view."""

VIEW_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The errors of a view that restarts, and of a connection that breaks."""

_log = logging.getLogger(__name__)

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class ViewNotConnected(SyncError):
    """Apply has no connection to the view now."""


class PoisonChange(SyncError):
    """A projection cannot interpret a change. It raises this inside of a savepoint, so the change leaves no rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedChange:
    """A change and the position of its transaction."""

    position: Position
    change: Change


class Projection(Protocol[E_co]):
    """Maps rows of the ledger to rows of the view.

    Both methods must have the same result if the view already has some of the changes. They raise `PoisonChange`, or an
    error in `POISON_ERRORS`, if a change is invalid.
    """

    async def project_and_advance(
        self, connection: "ViewConnection", changes: Sequence[LocatedChange], move: CheckpointMove
    ) -> Sequence[E_co]:
        """Write changes to the view and move the checkpoint, in one statement; return the effects.

        The caller handles the view's error for a checkpoint that is already further (`MOVED_SQLSTATE`).
        """
        ...

    async def project(self, connection: "ViewConnection", changes: Sequence[LocatedChange]) -> Sequence[E_co]:
        """Write changes to the view, inside of the caller's transaction; return the effects."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied(Generic[E]):
    """One committed batch.

    Attributes:
        position: The new checkpoint.
        fresh_at_us: The ledger's time up to which the view is known to have all changes, microseconds since 1970.
        transactions: In the order in which they were applied; empty if the batch had only progress.
        effects: What the projection returned, such as invalidations.
    """

    position: Position
    fresh_at_us: int
    transactions: Sequence[Transaction]
    effects: Sequence[E]


@dataclass(slots=True, kw_only=True)
class ApplyCounts:
    """The work of apply since its start, for metrics."""

    transactions: int = 0
    changes: int = 0
    batches: int = 0
    dropped: int = 0
    dead_letters: int = 0
    restarts: int = 0


class Applier(Generic[E]):
    """Applies a cell's changes to one view.

    Attributes:
        counts: For metrics.
        letters: The view's dead letters; their number is 0 before the first connection to the view.
        trouble: Why it does not apply changes, one sentence; None while it does.
        schema_unknown: Why it has stopped before a change that does not fit the registry; None if it has not.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes what it built, by name
        self,
        *,
        cell: CellId,
        view_url: str,
        registry: Registry,
        projection: Projection[E],
        meter: LagMeter,
        on_checkpoint_read: Callable[[Position, int], None],
        on_applied: Callable[[Applied[E]], Awaitable[None]],
    ) -> None:
        """Prepare.

        Args:
            cell: The cell whose changes are applied.
            view_url: URL of the view, with the role that owns it.
            registry: The tables that the projection knows.
            projection: Maps rows to the view.
            meter: Receives the position of the view.
            on_checkpoint_read: Called with the checkpoint and its freshness (as in `Applied`) each time it was read,
                under the apply lock and before the next batch. ``on_applied`` may not have been called for batches up
                to this checkpoint.
            on_applied: Called after each commit, in order. The next batch waits for it.
        """
        self._cell: CellId = cell
        self._view_url = view_url
        self._registry = registry
        self._projection = projection
        self._meter = meter
        self._on_checkpoint_read = on_checkpoint_read
        self._on_applied = on_applied
        self._position = ZERO
        self._fresh_at_us = 0
        self._connection: ViewConnection | None = None
        self._idle = asyncio.Lock()
        self._one_by_one = 0
        self._boundary = ZERO
        self._advanced = asyncio.Event()
        self.counts = ApplyCounts()
        self.letters = DeadLetters(cell, registry)
        self.trouble: str | None = "the view was not reached yet"
        self.schema_unknown: SchemaUnknown | None = None

    async def run(self, channel: Channel) -> None:
        """Apply the items of the channel, until cancelled."""
        backoff_s = BACKOFF_MIN_S
        while True:
            batches_before = self.counts.batches
            try:
                self.trouble = await self._apply_until_error(channel)
            except* (*VIEW_ERRORS, SyncError) as group:
                self.trouble, self.schema_unknown = _first_reason(group), None
            _log.warning("apply restarts from its checkpoint: %s", self.trouble)
            self.counts.restarts += 1
            if self.schema_unknown is not None:
                await asyncio.sleep(SCHEMA_UNKNOWN_PAUSE_S)
                continue
            advanced = self.counts.batches > batches_before
            backoff_s = BACKOFF_MIN_S if advanced else min(2 * backoff_s, BACKOFF_MAX_S)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret

    @asynccontextmanager
    async def between_batches(self) -> "AsyncGenerator[ViewConnection]":
        """Use the connection of apply, which holds the apply lock, while no batch is applied. Apply waits meanwhile.

        Raises:
            ViewNotConnected: Apply has no connection to the view.
        """
        async with self._idle:
            if self._connection is None:
                raise ViewNotConnected(self.trouble or "apply connects to the view")
            with _terminate_when_cancelled(self._connection):
                yield self._connection

    @contextmanager
    def one_transaction_batches(self) -> "Generator[None]":
        """Apply each transaction as a batch of its own meanwhile, so that a batch ends at every position."""
        self._one_by_one += 1
        try:
            yield
        finally:
            self._one_by_one -= 1

    def end_batch_at(self, position: Position) -> None:
        """End a batch at ``position``, if the view has not passed it."""
        self._boundary = position

    async def wait_until_applied(self, position: Position) -> None:
        """Wait until the view has all changes up to ``position``."""
        while self._position < position:
            await self._advanced.wait()

    async def _apply_until_error(self, channel: Channel) -> str:
        """Apply until an error; return its message.

        The error is caught here, inside of the subscription. Before Python 3.13 an error that leaves the subscription's
        TaskGroup can replace a cancellation that arrives at the same moment, and apply would continue.
        """
        async with self._view() as connection, channel.subscribe(self._position) as subscription:
            try:
                while True:
                    items = await subscription.take()
                    while items:
                        batch, items = self._next_batch(items)
                        async with self._idle:
                            applied = await self.apply(connection, batch)
                        subscription.acknowledge(applied.position)
                        await self._on_applied(applied)
                        if self.schema_unknown is not None:
                            raise self.schema_unknown
            except (*VIEW_ERRORS, SyncError) as error:
                if not isinstance(error, SchemaUnknown):
                    self.schema_unknown = None
                return _first_reason(error)

    def _next_batch(self, items: list[Item]) -> tuple[list[Item], list[Item]]:
        """Return the items of the next batch, and the others."""
        count = 1 if self._one_by_one else sum(item.position <= self._boundary for item in items)
        count = count or len(items)
        return items[:count], items[count:]

    @asynccontextmanager
    async def _view(self) -> "AsyncGenerator[ViewConnection]":
        """Connect to the view, take the apply lock and read the checkpoint."""
        connection = await asyncpg.connect(
            self._view_url,
            timeout=STATEMENT_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S,
            server_settings={
                "application_name": "palaver-apply",
                # A plan that was made for a small table must also suit a large one. Batches are short lists of keys, so
                # index lookups are right, whatever the statistics are.
                "enable_seqscan": "off",
                "enable_hashjoin": "off",
                "enable_mergejoin": "off",
                "plan_cache_mode": "force_generic_plan",
            },
        )
        try:
            await lock_apply(connection, self._cell)
            self._position = await read_checkpoint(connection, self._cell)
            self._fresh_at_us = await read_freshness(connection, self._cell)
            self._on_checkpoint_read(self._position, self._fresh_at_us)
            self._note_position(self._position)
            await self.letters.load(connection)
            self.trouble = None
            self._connection = connection
            yield connection
        finally:
            self._connection = None
            # Closing politely would wait for the server if the connection is broken, and is not needed if it works.
            connection.terminate()

    async def apply(self, connection: "ViewConnection", items: Sequence[Item]) -> Applied[E]:
        """Apply one batch in one transaction, up to a change that does not fit the registry (`schema_unknown`).

        If the call is cancelled, the batch may or may not be committed. The checkpoint at the next start shows it.

        Raises:
            asyncpg.PostgresError: The view rejected the batch; the view has no change of it.
            CheckpointMoved: Another process moved the checkpoint; the view has no change of this batch.
            SchemaUnknown: The first change of the batch does not fit the registry.
        """
        transactions, position, fresh_at_us = self._select_new(items)
        if self.schema_unknown is not None and not transactions:
            raise self.schema_unknown
        move = CheckpointMove(
            cell=self._cell,
            position=position,
            commit_ts_us=transactions[-1].commit_ts_us if transactions else None,
            fresh_at_us=fresh_at_us,
        )
        changes = [
            LocatedChange(position=transaction.position, change=change)
            for transaction in transactions
            for change in transaction.changes
        ]
        dead = 0
        effects: Sequence[E]
        if self.letters.total and self.letters.erased_by(one.change for one in changes):
            effects, dead = await self._apply_in_one_transaction(connection, changes, move)
        else:
            try:
                effects = await self._apply_in_one_statement(connection, changes, move)
            except (*POISON_ERRORS, PoisonChange):
                effects, dead = await self._apply_in_one_transaction(connection, changes, move)
        self._fresh_at_us = fresh_at_us
        self._note_position(position)
        self.counts.batches += 1
        self.counts.transactions += sum(not transaction.partial for transaction in transactions)
        self.counts.changes += len(changes)
        self.counts.dead_letters += dead
        return Applied(position=position, fresh_at_us=fresh_at_us, transactions=transactions, effects=effects)

    @property
    def dead_letters(self) -> int:
        """The number of dead letters in the view."""
        return self.letters.total

    def _note_position(self, position: Position) -> None:
        self._position = position
        self._meter.note_applied(position)
        self._advanced.set()
        self._advanced = asyncio.Event()

    def _select_new(self, items: Sequence[Item]) -> tuple[list[Transaction], Position, int]:
        """Return the transactions that the view lacks, the position after them, and the freshness there (microseconds).

        They end before the first change that does not fit the registry, which sets `schema_unknown`.

        A ledger's time that is later than this region's clock counts as now. Otherwise the freshness of a leader whose
        clock is ahead would stay in the view until correct clocks reach it.
        """
        now_us = time.time_ns() // 1000
        position = self._position
        fresh_at_us = self._fresh_at_us if self._fresh_at_us <= now_us else 0
        transactions: list[Transaction] = []
        self.schema_unknown = None
        for item in items:
            if isinstance(item, Progress):
                if item.position >= position:
                    position, fresh_at_us = item.position, max(fresh_at_us, min(item.sent_at_us, now_us))
            elif item.position <= position:
                self.counts.dropped += 1
            elif not self._fits(item):
                break
            else:
                transactions.append(item)
                if not item.partial:
                    position, fresh_at_us = item.position, max(fresh_at_us, min(item.commit_ts_us, now_us))
        return transactions, position, fresh_at_us

    def _fits(self, transaction: Transaction) -> bool:
        try:
            for change in transaction.changes:
                self._registry.check(change)
        except SchemaUnknown as error:
            self.schema_unknown = error
            return False
        return True

    async def _apply_in_one_statement(
        self, connection: "ViewConnection", changes: Sequence[LocatedChange], move: CheckpointMove
    ) -> Sequence[E]:
        """Apply a batch with one statement, which is a transaction of its own."""
        with _terminate_when_cancelled(connection), raising_checkpoint_moved(move):
            if changes:
                return await self._projection.project_and_advance(connection, changes, move)
            await advance_checkpoint(connection, move)
            return []

    async def _apply_in_one_transaction(
        self, connection: "ViewConnection", changes: Sequence[LocatedChange], move: CheckpointMove
    ) -> tuple[list[E], int]:
        """Apply a batch that writes or erases dead letters; return the effects and the number of invalid changes."""
        async with transaction_of(connection):
            effects, dead = await self._isolate(connection, changes)
            await self.letters.erase(connection, self.letters.erased_by(one.change for one in changes))
            await self.letters.load(connection)
            await advance_checkpoint(connection, move)
        return effects, dead

    async def _isolate(self, connection: "ViewConnection", changes: Sequence[LocatedChange]) -> tuple[list[E], int]:
        """Apply a batch with invalid changes: find these by bisection, and write them to `dead_letters`.

        Returns:
            The effects, and the number of invalid changes.
        """
        try:
            async with transaction_of(connection):
                return list(await self._projection.project(connection, changes)), 0
        except (*POISON_ERRORS, PoisonChange) as error:
            if len(changes) == 1:
                await self.letters.record(connection, changes[0].position, changes[0].change, error)
                return [], 1
        middle = len(changes) // 2
        first, first_dead = await self._isolate(connection, changes[:middle])
        second, second_dead = await self._isolate(connection, changes[middle:])
        return first + second, first_dead + second_dead


@asynccontextmanager
async def transaction_of(connection: "ViewConnection") -> "AsyncGenerator[None]":
    """A transaction, or a savepoint inside of one.

    Unlike asyncpg's own context it sends no ROLLBACK if it is cancelled: the cancelled statement may still run.
    PostgreSQL rolls back when the connection closes.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        with _terminate_when_cancelled(connection):
            yield
    except Exception:
        await transaction.rollback()
        raise
    await transaction.commit()


@contextmanager
def _terminate_when_cancelled(connection: "ViewConnection") -> "Generator[None]":
    """Terminate the connection if the caller is cancelled, because its statement may still run."""
    try:
        yield
    except asyncio.CancelledError:
        connection.terminate()
        raise


def _first_reason(error: Exception | BaseExceptionGroup[Exception]) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split()) or type(error).__name__
