"""Lists, retries and discards dead letters, for operators.

Decides what a retry does with a letter. **A retry runs between two batches of apply, under the apply lock, through the
registry and the projection: an image changes only an older version of its row. One transaction writes the row and
removes the letter; if the view rejects the change again, the letter stays with the new reason.** A deletion has no
version, so it is not retried: it could delete a newer row.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import orjson

from regions.identity import CellId
from regions.position import Position, encode_token
from sync.apply import POISON_ERRORS, VIEW_ERRORS, Applier, LocatedChange, PoisonChange, transaction_of
from sync.change import Change, SyncError
from sync.dead_letters import Content, DeadLetters, describe
from sync.registry import Registry, SchemaUnknown
from sync.statements import load_sql

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from asyncpg import Record

    from sync.checkpoint import ViewConnection

IDS_MAX: Final = 100
"""Letters of one order; apply waits at most for one letter at a time."""

LISTED_MAX: Final = 500
"""Letters of one answer."""

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

_log = logging.getLogger(__name__)


class LateProjection(Protocol[E_co]):
    """Maps a row of the ledger to the view."""

    async def project_late(self, connection: "ViewConnection", change: LocatedChange) -> Sequence[E_co]:
        """Write a change that is older than the checkpoint, inside of the caller's transaction; return the effects.

        Raises:
            PoisonChange: The change is invalid; as an error in `POISON_ERRORS`.
        """
        ...


class UnknownLetters(SyncError):
    """There are no letters with these ids."""


class DeadLetterOrders(Generic[E]):
    """Carries out orders on the dead letters of a view."""

    def __init__(
        self,
        *,
        cell: CellId,
        applier: Applier[E],
        registry: Registry,
        projection: LateProjection[E],
        on_retried: Callable[[Sequence[E]], None],
    ) -> None:
        """Prepare.

        Args:
            cell: The cell whose letters these are.
            applier: The apply of the same view.
            registry: The tables that the projection knows.
            projection: Maps rows to the view.
            on_retried: Called with the effects after each letter whose change the view has accepted.
        """
        self._cell: CellId = cell
        self._applier = applier
        self._registry = registry
        self._projection = projection
        self._on_retried = on_retried

    @property
    def _letters(self) -> DeadLetters:
        return self._applier.letters

    async def page(self, after: int) -> list[dict[str, object]]:
        """Return at most `LISTED_MAX` letters with an id above ``after``, oldest first, without the rows' images."""
        async with self._view() as connection:
            found = await connection.fetch(load_sql("list_dead_letters"), self._cell, after, LISTED_MAX)
        return [
            {
                **_fields(self._cell, one),
                "table": one["table"],
                "op": one["op"],
                "key": orjson.loads(one["key"] or "{}"),
            }
            for one in found
        ]

    async def show(self, letter: int) -> dict[str, object]:
        """Return one letter with the image of the row.

        Raises:
            UnknownLetters: There is no such letter.
        """
        async with self._view() as connection:
            (one,) = await self._read(connection, [letter])
        return {**_fields(self._cell, one), **orjson.loads(one["change"])}

    async def retry(self, ids: Sequence[int]) -> list[dict[str, object]]:
        """Apply the changes of letters again; return id and reason for each, with None as the reason of a success.

        Raises:
            UnknownLetters: A letter does not exist; none was retried.
        """
        async with self._view() as connection:
            letters = await self._read(connection, ids)
        done: list[dict[str, object]] = []
        for one in letters:
            async with self._view() as connection:
                done.append({"id": one["id"], "reason": await self._retry_one(connection, one["id"])})
        return done

    async def discard(self, ids: Sequence[int], by: str) -> int:
        """Delete letters; return their number.

        Raises:
            UnknownLetters: A letter does not exist; none was deleted.
        """
        async with self._view() as connection, transaction_of(connection):
            letters = await self._read(connection, ids)
            for one in letters:
                await connection.execute(load_sql("delete_dead_letter"), self._cell, one["id"])
            await self._letters.load(connection)
        for one in letters:
            change = orjson.loads(one["change"])
            _log.warning(
                "dead letter %d discarded by %s: %s %s: %s",
                one["id"],
                by,
                change["table"],
                change["key"],
                one["reason"],
            )
        self._letters.counts.discarded += len(letters)
        return len(letters)

    async def _read(self, connection: "ViewConnection", ids: Sequence[int]) -> list["Record"]:
        found = await connection.fetch(load_sql("read_dead_letters"), self._cell, list(ids))
        if missing := sorted(set(ids) - {one["id"] for one in found}):
            raise UnknownLetters(f"there is no dead letter {', '.join(map(str, missing))}")
        return found

    async def _retry_one(self, connection: "ViewConnection", letter: int) -> str | None:
        """Retry one letter in a transaction of its own; return the reason if it stays."""
        effects: Sequence[E] = []
        reason: str | None = None
        async with transaction_of(connection):
            found = await connection.fetch(load_sql("read_dead_letters"), self._cell, [letter])
            if not found:  # erased with its comment meanwhile
                return None
            try:
                async with transaction_of(connection):
                    effects = await self._apply_again(connection, found[0])
                    await connection.execute(load_sql("delete_dead_letter"), self._cell, letter)
            except (*POISON_ERRORS, PoisonChange, SchemaUnknown) as error:
                reason, effects = describe(error), []
                await connection.execute(load_sql("keep_dead_letter"), self._cell, letter, reason)
            await self._letters.load(connection)
        self._letters.counts.retried += reason is None
        self._letters.counts.failed += reason is not None
        self._on_retried(effects)
        return reason

    async def _apply_again(self, connection: "ViewConnection", letter: "Record") -> Sequence[E]:
        fields: dict[str, Any] = orjson.loads(letter["change"])
        change = Change(table=fields["table"], op=fields["op"], key=fields["key"], row=fields["row"])
        if letter["content_of"] is not None:
            table, *key = orjson.loads(letter["content_of"])
            content = Content(table=table, key=tuple(key))
            if change.table != table and await self._letters.is_erased(connection, content):
                return []  # the row was erased with the row that it depends on
            if letter["erased"]:
                if await self._letters.is_row_erased(connection, content) is not False:
                    return []
                raise PoisonChange("its content was erased; the letter of the deletion must be retried before it")
        elif letter["erased"]:
            raise PoisonChange("its content was erased, because the change has no key")
        if change.op == "delete":
            raise PoisonChange("a deletion has no version, so a retry could delete a newer row")
        self._registry.check(change)
        located = LocatedChange(position=Position(letter["epoch"], letter["lsn"]), change=change)
        effects = await self._projection.project_late(connection, located)
        await self._letters.erase(connection, self._letters.erased_by([change]))
        return effects

    @asynccontextmanager
    async def _view(self) -> "AsyncGenerator[ViewConnection]":
        """Use the connection of apply. After an error of the view apply connects again and voids all pages."""
        async with self._applier.between_batches() as connection:
            try:
                yield connection
            except VIEW_ERRORS:
                connection.terminate()
                raise


def _fields(cell: CellId, letter: "Record") -> dict[str, object]:
    return {
        "id": letter["id"],
        "position": encode_token(cell, Position(letter["epoch"], letter["lsn"])),
        "at": letter["at"].isoformat(),
        "reason": letter["reason"],
        "attempts": letter["attempts"],
        "bytes": letter["bytes"],
        "erased": letter["erased"],
    }
