"""Apply: brings batches of changes into the view, exactly once in effect.

Decides what is one transaction of the view, what is dropped as known, and what is set aside as poison.
Refuses to know what rows mean: that is the `Projection`'s. A batch is one statement, and with it one round trip
and one transaction; only a batch with poison in it takes more. **A change and the checkpoint that covers it
are one transaction: after any crash a change is in the view if and only if the checkpoint says so; a
change that the view refuses ends in `dead_letters` with its reason and stops nothing else.**

What a committed batch moved is told by `on_applied`, and may get lost: the view's reply does not arrive, or a task ends
between the commit and the call. The batch is then dropped as known. So each time the checkpoint was read,
`on_checkpoint_read` says that nobody may have been told what is up to it.
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
import orjson

from regions.identity import CellId
from regions.position import ZERO, Position
from sync.change import Change, Item, Progress, SyncError, Transaction, change_fields
from sync.channel import Channel
from sync.checkpoint import (
    CheckpointMove,
    advance_checkpoint,
    lock_apply,
    raising_checkpoint_moved,
    read_checkpoint,
    read_freshness,
)
from sync.lag import LagMeter
from sync.statements import load_sql

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from sync.checkpoint import ViewConnection

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
"""The view is a neighbour: when it is back, apply goes on within two seconds."""

STATEMENT_TIMEOUT_S: Final = 30.0
"""One batch takes milliseconds; a statement that takes this long waits for something that is broken."""

POISON_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
"""SQLSTATE classes 22, 23 and 54: the change is at fault, and trying again will not help. Everything else
is the view's trouble and is tried again."""

VIEW_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a view that restarts, or a connection that breaks half-way, raises."""

_log = logging.getLogger(__name__)

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class PoisonChange(SyncError):
    """A projection cannot make sense of a change; raised inside of a savepoint, so nothing of it stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedChange:
    """A change and where it stands in history."""

    position: Position
    change: Change


class Projection(Protocol[E_co]):
    """What rows become in the view.

    Both methods must have the same result when some of the changes are in the view already, and raise
    `PoisonChange` when a change is at fault. Errors in `POISON_ERRORS` mean the same.
    """

    async def project_and_advance(
        self, connection: "ViewConnection", changes: Sequence[LocatedChange], move: CheckpointMove
    ) -> Sequence[E_co]:
        """Bring changes into the view and make the checkpoint's move, in one statement; return what moved.

        The view's own error for a checkpoint that is further (`MOVED_SQLSTATE`) passes through.
        """
        ...

    async def project(self, connection: "ViewConnection", changes: Sequence[LocatedChange]) -> Sequence[E_co]:
        """Bring changes into the view, inside of the caller's transaction; return what moved."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied(Generic[E]):
    """One committed batch.

    Attributes:
        position: Where the view stands now.
        fresh_at_us: The ledger's time up to which the view has everything, as far as it was told.
        transactions: In the order in which they were applied; empty when only progress was made.
        effects: What the projection says has moved.
    """

    position: Position
    fresh_at_us: int
    transactions: Sequence[Transaction]
    effects: Sequence[E]


@dataclass(slots=True, kw_only=True)
class ApplyCounts:
    """What apply has done since it started, for metrics."""

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
        dead_letters: Rows in the view's table, 0 before the view was reached.
        trouble: Why it does not apply, one sentence; None while it does.
    """

    def __init__(  # noqa: PLR0913 - the composition root hands over what it built, by name
        self,
        *,
        cell: CellId,
        view_url: str,
        projection: Projection[E],
        meter: LagMeter,
        on_checkpoint_read: Callable[[Position, int], None],
        on_applied: Callable[[Applied[E]], Awaitable[None]],
    ) -> None:
        """Prepare.

        Args:
            cell: Whose changes are applied.
            view_url: The view, as its owner.
            projection: What rows become in the view.
            meter: Is told where the view stands.
            on_checkpoint_read: Called with the checkpoint and its freshness (as in `Applied`) each time it was read,
                under the apply lock and before the next batch. ``on_applied`` may not have been called for batches up
                to this checkpoint.
            on_applied: Called after each commit, in order; should return soon.
        """
        self._cell: CellId = cell
        self._view_url = view_url
        self._projection = projection
        self._meter = meter
        self._on_checkpoint_read = on_checkpoint_read
        self._on_applied = on_applied
        self._position = ZERO
        self._fresh_at_us = 0
        self.counts = ApplyCounts()
        self.dead_letters = 0
        self.trouble: str | None = "the view was not reached yet"

    async def run(self, channel: Channel) -> None:
        """Apply what the channel brings, for ever."""
        backoff_s = BACKOFF_MIN_S
        while True:
            batches_before = self.counts.batches
            try:
                self.trouble = await self._apply_until_error(channel)
            except* (*VIEW_ERRORS, SyncError) as group:
                self.trouble = _first_reason(group)
            _log.warning("apply starts again from its checkpoint: %s", self.trouble)
            self.counts.restarts += 1
            advanced = self.counts.batches > batches_before
            backoff_s = BACKOFF_MIN_S if advanced else min(2 * backoff_s, BACKOFF_MAX_S)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret

    async def _apply_until_error(self, channel: Channel) -> str:
        """Apply until something breaks; return what it was.

        The error ends here, inside of the subscription. On its way out through the subscription's TaskGroup it
        would replace a cancellation that arrives in the same moment (Python before 3.13), and nobody would ever
        stop applying.
        """
        async with self._view() as connection, channel.subscribe(self._position) as subscription:
            try:
                while True:
                    applied = await self.apply(connection, await subscription.take())
                    subscription.acknowledge(applied.position)
                    await self._on_applied(applied)
            except (*VIEW_ERRORS, SyncError) as error:
                return _first_reason(error)

    @asynccontextmanager
    async def _view(self) -> "AsyncGenerator[ViewConnection]":
        """Connect to the view as the one who applies, and read where it stands."""
        connection = await asyncpg.connect(
            self._view_url,
            timeout=STATEMENT_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S,
            server_settings={
                "application_name": "palaver-apply",
                # A plan made while a table was small must stay good when it is large: batches are short
                # lists of keys, so only index lookups are wanted, whatever the statistics say.
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
            self._meter.note_applied(self._position)
            self.dead_letters = await connection.fetchval(load_sql("count_dead_letters"), self._cell)
            self.trouble = None
            yield connection
        finally:
            # A connection that is broken has nobody to say goodbye to, and one that works needs no goodbye.
            connection.terminate()

    async def apply(self, connection: "ViewConnection", items: Sequence[Item]) -> Applied[E]:
        """Apply one batch in one transaction and return what it did.

        When it is cancelled, the batch may have been committed or not: the checkpoint at the next start says so.

        Raises:
            asyncpg.PostgresError: The view refused; nothing of the batch is there.
            CheckpointMoved: Somebody else applied; nothing of the batch is there.
        """
        transactions, position, fresh_at_us = self._select_new(items)
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
        try:
            effects = await self._apply_in_one_statement(connection, changes, move)
        except (*POISON_ERRORS, PoisonChange):
            async with _transaction(connection):
                effects, dead = await self._isolate(connection, changes)
                await advance_checkpoint(connection, move)
        self._position, self._fresh_at_us = position, fresh_at_us
        self._meter.note_applied(position)
        self.counts.batches += 1
        self.counts.transactions += sum(not transaction.partial for transaction in transactions)
        self.counts.changes += len(changes)
        self.counts.dead_letters += dead
        self.dead_letters += dead
        return Applied(position=position, fresh_at_us=fresh_at_us, transactions=transactions, effects=effects)

    def _select_new(self, items: Sequence[Item]) -> tuple[list[Transaction], Position, int]:
        """Return what the view does not have, the position after it, and how fresh that is.

        A time of the ledger that is later than this region's counts as now: the clock of a leader may be ahead, and its
        time would be kept until then, whatever right clocks say.
        """
        now_us = time.time_ns() // 1000
        position = self._position
        fresh_at_us = self._fresh_at_us if self._fresh_at_us <= now_us else 0
        transactions: list[Transaction] = []
        for item in items:
            if isinstance(item, Progress):
                if item.position >= position:
                    position, fresh_at_us = item.position, max(fresh_at_us, min(item.sent_at_us, now_us))
            elif item.position <= position:
                self.counts.dropped += 1
            else:
                transactions.append(item)
                if not item.partial:
                    position, fresh_at_us = item.position, max(fresh_at_us, min(item.commit_ts_us, now_us))
        return transactions, position, fresh_at_us

    async def _apply_in_one_statement(
        self, connection: "ViewConnection", changes: Sequence[LocatedChange], move: CheckpointMove
    ) -> Sequence[E]:
        """Apply a batch with one statement, which is a transaction by itself."""
        with _terminate_when_cancelled(connection), raising_checkpoint_moved(move):
            if changes:
                return await self._projection.project_and_advance(connection, changes, move)
            await advance_checkpoint(connection, move)
            return []

    async def _isolate(self, connection: "ViewConnection", changes: Sequence[LocatedChange]) -> tuple[list[E], int]:
        """Apply a batch that holds poison: halve to find the changes at fault; they become dead letters.

        Returns:
            What moved, and how many changes became dead letters.
        """
        try:
            async with _transaction(connection):
                return list(await self._projection.project(connection, changes)), 0
        except (*POISON_ERRORS, PoisonChange) as error:
            if len(changes) == 1:
                await self._record_dead_letter(connection, changes[0], error)
                return [], 1
        middle = len(changes) // 2
        first, first_dead = await self._isolate(connection, changes[:middle])
        second, second_dead = await self._isolate(connection, changes[middle:])
        return first + second, first_dead + second_dead

    async def _record_dead_letter(self, connection: "ViewConnection", located: LocatedChange, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        _log.error("change of %s %s is dead: %s", located.change.table, dict(located.change.key), reason)
        await connection.execute(
            load_sql("record_dead_letter"),
            self._cell,
            located.position.epoch,
            located.position.lsn,
            orjson.dumps(change_fields(located.change)).decode(),
            reason,
        )


@asynccontextmanager
async def _transaction(connection: "ViewConnection") -> "AsyncGenerator[None]":
    """A transaction, or a savepoint inside of one.

    Unlike asyncpg's own context it says no ROLLBACK when it is cancelled: the statement that was cancelled
    may still be under way, and a connection that is cut rolls back by itself.
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
    """End the connection when the caller is cancelled: what it was saying may still be under way."""
    try:
        yield
    except asyncio.CancelledError:
        connection.terminate()
        raise


def _first_reason(error: Exception | BaseExceptionGroup[Exception]) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split()) or type(error).__name__
