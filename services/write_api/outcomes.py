"""Executes writes, and turns their outcomes into answers to clients.

Decides which writes the edge may retry after an overloaded ledger refused them: posts with an Idempotency-Key (the edge
retries no other writes), within a retry budget that successful writes increase (ADR 0035 and 0045).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import asyncpg
from prometheus_client import Counter

from regions.identity import CellId, Epoch
from regions.position import Position, encode_token
from services.api.answers import Header
from services.api.consistency import POSITION_HEADER
from services.api.problems import FieldError, Problem, unavailable
from services.api.requests import unauthorized
from services.write_api.leadership import stale_epoch
from services.write_api.pool import (
    ClientGone,
    LedgerError,
    LedgerOverloaded,
    LedgerPool,
    LedgerStuck,
    LedgerUnavailable,
    OutcomeUnknown,
)

# Retries that each successful write adds to the budget, and the maximum of the budget.
REPEATS_PER_WRITE: Final = 0.1
REPEATS_MAX: Final = 100.0
# The same as Retry-After, because an overload does not end within milliseconds.
LATER: Final = b"1"

POST_AGAIN: Final = "Send it again with the same Idempotency-Key to find out."
UNKEYED_AGAIN: Final = "Sent again it may be done twice, because it had no Idempotency-Key."
EDIT_AGAIN: Final = (
    "Send it again with the same ETag in If-Match: if it was done already, that is answered as a success, and 412 says"
    " that somebody else has edited the comment. With * a repetition may overwrite the edit of somebody else."
)
SITE_EDIT_AGAIN: Final = "Read the site, and send it again if the change is not there: it would overwrite a later edit."
DELETION_AGAIN: Final = "Send it again: to delete a comment twice is as good as once."
VOTE_AGAIN: Final = "Send it again: to set a vote to the same value twice is as good as once."
"""What a client can do if the outcome of its write is unknown. Only posts have keys (ADR 0035)."""

_OUTCOMES = Counter("palaver_ledger_outcomes_total", "Outcomes of ledger calls", ["outcome"])
_log = logging.getLogger("palaver.write_api")


_REFUSALS: Final[Mapping[str, tuple[str, str, str | None]]] = {
    "no_site": ("unknown-site", "No site has this id.", None),
    "no_comment": ("unknown-comment", "The site has no comment with this id, or it was deleted.", None),
    "not_shown": ("unknown-comment", "The site has no comment with this id, or it is hidden or was deleted.", None),
    "version_mismatch": ("version-mismatch", "Read the comment again and use its newest ETag.", None),
    "thread_closed": ("thread-closed", "The thread was closed for new comments.", None),
    "read_only": ("thread-closed", "The thread is read-only: it takes no votes.", None),
    "key_reused": ("idempotency-key-reused", "Use a new key for a new request.", None),
    "no_parent": ("unknown-parent", "The comment to reply to is not in this thread, or was deleted.", "parent"),
    "too_deep": ("too-deep", "Replies may be nested {depth_max} levels deep.", "parent"),
}
"""Slug, detail and invalid field of the outcomes that the client can correct."""

_DONE: Final = frozenset({"created", "edited", "deleted", "voted"})
"""The outcomes of calls that wrote something; a replay does not."""


class RepeatBudget:
    """Limits how many writes that an overloaded ledger refused the edges may retry.

    The budget is a tenth of the successful writes, and a reserve for the burst of requests after a failover. The
    precedents are Finagle's RetryBudget and gRPC's retry throttling; those count at the client, which does not know why
    a request failed.
    """

    def __init__(self) -> None:
        self._left = REPEATS_MAX

    def earn(self) -> None:
        """Count a successful write."""
        self._left = min(REPEATS_MAX, self._left + REPEATS_PER_WRITE)

    def spend(self) -> bool:
        """Take one retry from the budget; return whether there was one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Writes:
    """Executes the writes of a process, which share one retry budget."""

    def __init__(self, pool: LedgerPool) -> None:
        self._pool = pool
        self._budget = RepeatBudget()

    async def call(
        self,
        statement: str,
        epoch: Epoch,
        *arguments: object,
        gone: Callable[[], bool],
        again: str,
        keyed: bool = False,
    ) -> asyncpg.Record:
        """Run a CALL in an epoch, count its outcome, and return its row.

        Args:
            statement: The CALL.
            epoch: Its first argument.
            *arguments: The others.
            gone: Returns whether the client has closed its connection.
            again: What the client can do if the outcome is unknown, one sentence or more.
            keyed: Whether the request has an Idempotency-Key, so that the edge may retry it.

        Raises:
            Problem: The call has no result.
        """
        try:
            row = await self._pool.call(statement, epoch, *arguments, gone=gone)
        except LedgerOverloaded as error:
            raise ledger_problem(error, repeatable=keyed and self._budget.spend()) from error
        except LedgerError as error:
            raise ledger_problem(error, again=again) from error
        _OUTCOMES.labels(row["outcome"]).inc()
        if row["outcome"] in _DONE:
            self._budget.earn()
        return row


def refuse(outcome: str, *, depth_max: int = 0) -> Problem:
    """Return the problem of an outcome that is not a success."""
    if outcome == "stale_epoch":
        return stale_epoch("The ledger's newest fence row is of another epoch.")
    if outcome == "unauthorized":
        return unauthorized("The key is not one of this site.")
    slug, detail, field = _REFUSALS[outcome]
    detail = detail.format(depth_max=depth_max)
    return Problem(slug, detail, errors=[FieldError(field, detail)] if field else ())


def position_header(cell: CellId, epoch: Epoch, lsn: int) -> Header:
    """Return the `Palaver-Position` header of a write."""
    return POSITION_HEADER, encode_token(cell, Position(epoch, lsn)).encode()


def ledger_problem(error: LedgerError, *, again: str | None = None, repeatable: bool = False) -> Problem:
    """Return the problem of a call without a result, and log it.

    The problem describes this attempt only; an earlier attempt of the edge for the same request may have written.

    Args:
        error: Why there is no result.
        again: What the client can do if the outcome of its write is unknown; None for a read, which has no such
            outcome.
        repeatable: Whether the edge may retry a write that an overloaded ledger refused.
    """
    _log.warning("a ledger call failed", extra={"kind": type(error).__name__, "reason": str(error)})
    match error:
        case OutcomeUnknown() if again is not None:
            detail = f"The write was sent to the ledger and its outcome is not known. {again}"
            return unavailable("outcome-unknown", detail, repeat=b"now")
        case LedgerOverloaded():
            repeat = LATER if repeatable else None
            return unavailable("overloaded", "The ledger is busy; this attempt wrote nothing.", repeat=repeat)
        case ClientGone():
            return unavailable("overloaded", "The client was gone before its write began; this attempt wrote nothing.")
        case LedgerStuck():
            detail = "What the ledger was asked before does not end; this attempt wrote nothing."
            return unavailable("overloaded", detail, repeat=LATER)
        case LedgerUnavailable() | OutcomeUnknown():
            detail = "The ledger takes no writes now; this attempt wrote nothing."
            return unavailable("ledger-unavailable", detail, repeat=b"now")
        case _:
            raise AssertionError(error)
