"""Compares the view with the ledger, and mends the rows that differ.

Decides how a comparison runs and which rows are mended. Does not know tables or counters; the `Mender` does. The steps
of a comparison:

1. The leader opens a snapshot and answers with its position P. Until then apply makes each transaction a batch of its
   own, afterwards it ends a batch at P.
2. The leader answers with the summary of its tree at P.
3. When the view has reached P, its tree is taken back to P, and both trees are compared (`sync.merkle`).
4. Rows that differ are fetched as of P, and written between two batches of apply.

**A row that the stream has changed since P is not mended: it is newer than P, and the next comparison checks it. So a
repair never brings back a value that the stream has replaced, such as an erased text.** If more rows differ than
`ROWS_MAX`, nothing is mended: such a view is rebuilt.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Literal, Protocol, TypeVar

import asyncpg

from regions.position import ZERO, Position
from sync.apply import Applier
from sync.change import SyncError
from sync.merkle.descent import Different, NodesRequest, Same, TooDifferent, compare
from sync.merkle.errors import MerkleError, NotComparable, PositionInsideBatch, PositionTooOld
from sync.merkle.rewind import rewind_rows, rewind_tree
from sync.merkle.rows import (
    LeafDifference,
    LeafDigests,
    RowsRequest,
    compare_rows,
    group_rows,
    plan_requests,
    wrong_leaves,
)
from sync.merkle.shape import leaf_of
from sync.merkle.tree import PositionedTree, Summary
from sync.view_tree import ViewRow, ViewTree

if TYPE_CHECKING:
    from sync.checkpoint import ViewConnection

ROWS_MAX: Final = 50_000
"""Rows that one comparison mends at most."""

ROWS_PER_TRANSACTION: Final = 500
"""Apply waits while a transaction mends."""

IMAGES_PER_REQUEST: Final = 500
REACHED_S_MAX: Final = 15.0
ATTEMPTS_MAX: Final = 3
RETRY_PAUSE_S: Final = 1.0
EVENTS_MAX: Final = 200

Kind = Literal["missing", "phantom", "stale"]

Image = tuple[str, dict[str, str | None]]
"""Table and columns in text format."""

_log = logging.getLogger(__name__)

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class LedgerSession(Protocol):
    """An open comparison with the leader (`sync.channel.direct.comparison_client.Comparison`)."""

    position: Position
    exchanged: int
    requests: int

    async def summary(self) -> Summary:
        """Return the summary of the ledger's tree."""
        ...

    async def nodes(self, request: NodesRequest) -> bytes:
        """Return the digests of nodes."""
        ...

    async def rows(self, request: RowsRequest) -> LeafDigests:
        """Return the digests of the rows of leaves."""
        ...

    async def images(self, key_hashes: Sequence[int]) -> list[Image]:
        """Return rows as of the position."""
        ...

    async def existing(self, rows: Sequence[tuple[str, tuple[str, ...]]]) -> int:
        """Return how many of some rows, given by table and key, the ledger has at the position."""
        ...


class OpenComparison(Protocol):
    """Opens a comparison."""

    def __call__(self, *, scrub: bool) -> AbstractAsyncContextManager[LedgerSession]:
        """Return the context of a comparison; with ``scrub`` the leader reads all rows again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A row that differs from the ledger.

    Attributes:
        kind: The ledger has it and the view lacks it; the view has it and the ledger lacks it; or both differ.
        table: Name of its table.
        key: The columns of its key, in text format.
        columns: The columns that differ, of a row that is stale.
    """

    kind: Kind
    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended(Generic[E_co]):
    """What a mender wrote.

    Attributes:
        divergences: The rows that it wrote or deleted.
        effects: The effects on caches, as those of a projection.
    """

    divergences: Sequence[Divergence]
    effects: Sequence[E_co]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongCounters:
    """Where derived values differ from the rows.

    Attributes:
        threads: Ids of threads whose number of comments is wrong.
        comments: Ids of comments whose number of replies or votes is wrong.
    """

    threads: Sequence[object]
    comments: Sequence[object]

    def __len__(self) -> int:
        """Return their number."""
        return len(self.threads) + len(self.comments)


class Mender(Protocol[E_co]):
    """Writes rows of the ledger to the view, whatever the view has, and recomputes what is derived from them."""

    async def mend(
        self, connection: "ViewConnection", images: Sequence[Image], phantoms: Sequence[ViewRow], position: Position
    ) -> Mended[E_co]:
        """Write rows and delete others, inside of the caller's transaction."""
        ...

    async def find_wrong_counters(self, connection: "ViewConnection") -> "WrongCounters":
        """Compute all derived values from the rows, and return where the view has others."""
        ...

    async def recount(self, connection: "ViewConnection", wrong: "WrongCounters", position: Position) -> Sequence[E_co]:
        """Compute some derived values again, inside of the caller's transaction; return the effects."""
        ...


Verdict = Literal["clean", "mended", "differs", "too different", "failed"]


@dataclass(slots=True, kw_only=True)
class Comparison:
    """The result of one comparison.

    Attributes:
        verdict: ``differs`` in a dry run, or if rows changed meanwhile and the next comparison decides.
        reason: Why it ran.
        position: The position that was compared; `ZERO` if there was none.
        rows: Number of the ledger's rows.
        bytes: Bytes that were exchanged.
        requests: Requests to the leader.
        seconds: Duration.
        found: Number of rows that differ, by kind.
        mended: Number of rows that were mended, by kind.
        skipped: Rows that the stream changed meanwhile.
        wrong_leaves: Leaves of the view that were not the sum of their rows.
        counters: Derived values that were wrong.
        detail: The error, or what to do; empty if there is nothing to say.
        at: Unix time of its end.
    """

    reason: str
    verdict: Verdict = "failed"
    position: Position = ZERO
    rows: int = 0
    bytes: int = 0
    requests: int = 0
    seconds: float = 0.0
    found: Counter[str] = field(default_factory=Counter[str])
    mended: Counter[str] = field(default_factory=Counter[str])
    skipped: int = 0
    wrong_leaves: int = 0
    counters: int = 0
    detail: str = ""
    at: float = 0.0

    def document(self) -> dict[str, object]:
        """Return it for /status and for `palaver repair`."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "position": str(self.position),
            "rows": self.rows,
            "bytes": self.bytes,
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "found": dict(self.found),
            "mended": dict(self.mended),
            "skipped": self.skipped,
            "wrong_leaves": self.wrong_leaves,
            "counters": self.counters,
            "detail": self.detail,
            "at": self.at,
        }


class RepairBusy(SyncError):
    """A comparison runs already."""


class Repair(Generic[E]):
    """Compares one view with the ledger: on a schedule, after a failover, and on order.

    Attributes:
        last: The last comparison; None before the first.
        last_clean: The last comparison after which the view was equal to the ledger.
        last_scrub_at: Unix time of the last scrub; None before the first.
        events: The newest divergences.
        found: Rows that differed since the start of the process, by kind.
        mended: Rows that were mended since the start of the process, by kind.
        comparisons: Number of comparisons by verdict.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes what it built, by name
        self,
        *,
        applier: Applier[E],
        tree: ViewTree,
        mender: Mender[E],
        open_comparison: OpenComparison,
        connect: Callable[[], AbstractAsyncContextManager["ViewConnection"]],
        on_mended: Callable[[Sequence[E]], None],
    ) -> None:
        """Prepare.

        Args:
            applier: The apply of the view.
            tree: The tree of the view.
            mender: Writes rows to the view.
            open_comparison: Opens a comparison with the leader.
            connect: Opens a connection to the view of its own, as its owner, for scrubs.
            on_mended: Called with the effects after each commit.
        """
        self._applier = applier
        self._tree = tree
        self._mender = mender
        self._open_comparison = open_comparison
        self._connect = connect
        self._on_mended = on_mended
        self._running = asyncio.Lock()
        self.last: Comparison | None = None
        self.last_clean: Comparison | None = None
        self.last_scrub_at: float | None = None
        self.events: list[Divergence] = []
        self.found: Counter[str] = Counter()
        self.mended: Counter[str] = Counter()
        self.comparisons: Counter[str] = Counter()

    @property
    def running(self) -> bool:
        """Whether a comparison runs."""
        return self._running.locked()

    async def run(self, *, reason: str, scrub: bool = False, dry_run: bool = False) -> Comparison:
        """Compare once, and mend unless it is a dry run.

        Args:
            reason: Why, for the log.
            scrub: Read all rows of both sides again, and check the derived values.
            dry_run: Change nothing in the view.

        Raises:
            RepairBusy: Another comparison runs.
        """
        if self._running.locked():
            raise RepairBusy("a comparison of this region runs already")
        async with self._running:
            result = Comparison(reason=reason)
            began = time.monotonic()
            try:
                await self._run(result, scrub=scrub, dry_run=dry_run)
            except (SyncError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                result.verdict, result.detail = "failed", " ".join(str(error).split()) or type(error).__name__
            result.seconds, result.at = time.monotonic() - began, time.time()
            self._note(result)
            return result

    async def _run(self, result: Comparison, *, scrub: bool, dry_run: bool) -> None:
        if scrub:
            await self._scrub(result, dry_run=dry_run)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                await self._compare(result, scrub=scrub, dry_run=dry_run)
                break
            except (PositionInsideBatch, PositionTooOld, NotComparable):
                if attempt == ATTEMPTS_MAX:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
        if scrub and result.verdict != "too different":
            self.last_scrub_at = time.time()

    async def _scrub(self, result: Comparison, *, dry_run: bool) -> None:
        async with self._connect() as connection:
            result.wrong_leaves = len(await self._tree.scrub(connection))
            wrong = await self._mender.find_wrong_counters(connection)
        result.counters = len(wrong)
        if not wrong or dry_run:
            return
        _log.warning("counters of the view are wrong: %d threads, %d comments", len(wrong.threads), len(wrong.comments))
        async with self._applier.between_batches() as connection, connection.transaction():
            effects = await self._mender.recount(connection, wrong, self._tree.recent.head)
        self._on_mended(effects)

    async def _compare(self, result: Comparison, *, scrub: bool, dry_run: bool) -> None:
        result.found.clear()
        with ExitStack() as position_unknown:
            position_unknown.enter_context(self._applier.one_transaction_batches())
            async with self._open_comparison(scrub=scrub) as session:
                self._applier.end_batch_at(session.position)
                position_unknown.close()
                try:
                    await self._compare_at(result, session, dry_run=dry_run)
                    async with self._applier.between_batches() as connection:
                        await self._tree.fold(connection)
                finally:
                    result.bytes, result.requests = session.exchanged, session.requests

    async def _reach(self, position: Position) -> None:
        try:
            async with asyncio.timeout(REACHED_S_MAX):
                await self._applier.wait_until_applied(position)
        except TimeoutError:
            raise MerkleError(f"the view did not reach {position} within {REACHED_S_MAX:g} s") from None

    async def _compare_at(self, result: Comparison, session: LedgerSession, *, dry_run: bool) -> None:
        summary = await session.summary()
        result.position, result.rows = summary.position, summary.root.count
        await self._reach(result.position)
        async with self._applier.between_batches() as connection:
            now = await self._tree.read(connection)
            tree = rewind_tree(now, self._tree.recent, result.position)
        outcome = await _descend(session, summary, tree)
        match outcome:
            case Same():
                result.verdict = "clean"
            case TooDifferent():
                result.verdict = "too different"
                result.detail = f"more than {ROWS_MAX} leaves differ: rebuild the view"
            case Different():
                differences = [one async for one in self._differences(session, outcome, result)]
                for one in differences:
                    result.found.update(missing=len(one.missing), phantom=len(one.phantom), stale=len(one.stale))
                if result.found.total() > ROWS_MAX:
                    result.verdict = "too different"
                    result.detail = (
                        f"{result.found.total()} rows differ, at most {ROWS_MAX} are mended: rebuild the view"
                    )
                elif dry_run:
                    result.verdict = "differs"
                else:
                    await self._mend(session, differences, result)

    async def _differences(
        self, session: LedgerSession, outcome: Different, result: Comparison
    ) -> AsyncIterator[LeafDifference]:
        position = result.position
        for request in plan_requests(outcome.tree, outcome.leaves, rows_of_other=result.rows, position=position):
            async with self._applier.between_batches() as connection:
                now = await self._tree.read(connection)
                found = await self._tree.rows_of(connection, request.leaves, request.depth)
            rows = group_rows([(row.key_hash, row.h1, row.h2) for row in found], request)
            rewound = rewind_rows(rows, self._tree.recent, depth=request.depth, position=now.position, to=position)
            wrong = wrong_leaves(outcome.tree, rewound)
            result.wrong_leaves += len(wrong)
            await self._correct_leaves(wrong, request.depth)
            for one in compare_rows(rewound, await session.rows(request)):
                yield one

    async def _correct_leaves(self, leaves: Sequence[int], depth: int) -> None:
        """Compute leaves again that are not the sum of their rows."""
        if not leaves:
            return
        _log.error("leaves of the view are not the sum of their rows: %d", len(leaves))
        async with self._connect() as connection:
            await self._tree.correct(connection, leaves, depth)

    async def _mend(self, session: LedgerSession, differences: Sequence[LeafDifference], result: Comparison) -> None:
        wanted = [key for one in differences for key in (*one.missing, *one.stale)]
        phantoms = [key for one in differences for key in one.phantom]
        for start in range(0, len(phantoms), ROWS_PER_TRANSACTION):
            await self._mend_some(session, [], phantoms[start : start + ROWS_PER_TRANSACTION], [], result)
        for start in range(0, len(wanted), IMAGES_PER_REQUEST):
            some = wanted[start : start + IMAGES_PER_REQUEST]
            await self._mend_some(session, await session.images(some), [], some, result)
        result.verdict = "mended" if not result.skipped else "differs"

    async def _mend_some(
        self,
        session: LedgerSession,
        images: Sequence[Image],
        phantoms: Sequence[int],
        wanted: Sequence[int],
        result: Comparison,
    ) -> None:
        """Mend some rows in one transaction, between two batches of apply.

        A row is deleted only if the ledger has none with its key, read from its table: a leader whose rows in memory
        are incomplete must not make a view delete comments.
        """
        position = result.position
        async with self._applier.between_batches() as connection, connection.transaction():
            now = await self._tree.read(connection)
            changed = {key_hash for key_hash, _ in self._tree.recent.between(position, now.position)}
            result.skipped += len(changed.intersection(phantoms)) + len(changed.intersection(wanted))
            current = [one for one in images if self._tree.key_hash(*one) not in changed]
            gone = await self._rows_with(connection, set(phantoms) - changed, now.tree.depth)
            if gone and await session.existing([(row.table, row.key) for row in gone]):
                raise NotComparable("the leader's rows in memory were incomplete")
            mended = await self._mender.mend(connection, current, gone, position)
            letters = self._applier.letters
            await letters.erase(connection, letters.erased_rows(current, [(row.table, row.key) for row in gone]))
            await letters.load(connection)
        self._on_mended(mended.effects)
        for one in mended.divergences:
            result.mended[one.kind] += 1
            _log.warning("row mended: %s %s %s %s", one.kind, one.table, one.key, ",".join(one.columns))
        self.events = [*self.events, *mended.divergences][-EVENTS_MAX:]

    async def _rows_with(self, connection: "ViewConnection", key_hashes: set[int], depth: int) -> list[ViewRow]:
        """Return the view's rows with these key hashes."""
        leaves = sorted({leaf_of(one, depth) for one in key_hashes})
        rows = await self._tree.rows_of(connection, leaves, depth) if leaves else []
        return [row for row in rows if row.key_hash in key_hashes]

    def _note(self, result: Comparison) -> None:
        self.last = result
        self.found.update(result.found)
        self.mended.update(result.mended)
        self.comparisons[result.verdict] += 1
        if result.verdict in {"clean", "mended"}:
            self.last_clean = result
        level = logging.INFO if result.verdict == "clean" else logging.WARNING
        _log.log(
            level,
            "compared with the ledger at %s: %s, %d rows, found %s, mended %s, %.3f s%s",
            result.position, result.verdict, result.rows, dict(result.found), dict(result.mended), result.seconds,
            f": {result.detail}" if result.detail else "",
        )  # fmt: skip


async def _descend(session: LedgerSession, summary: Summary, tree: PositionedTree) -> Same | Different | TooDifferent:
    """Run the comparison of two trees with the answers of the leader."""
    steps = compare(tree, summary, leaves_max=ROWS_MAX)
    try:
        request = next(steps)
        while True:
            request = steps.send(await session.nodes(request))
    except StopIteration as ended:
        outcome: Same | Different | TooDifferent = ended.value
        return outcome
