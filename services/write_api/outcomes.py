"""What the ledger's outcomes are to a client."""

import logging
from collections.abc import Mapping
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
from services.write_api.pool import LedgerError, LedgerOverloaded, LedgerStuck, LedgerUnavailable, OutcomeUnknown

# As long as Retry-After says: what holds a write up does not pass in milliseconds.
LATER: Final = b"1"

_OUTCOMES = Counter("palaver_ledger_outcomes_total", "Outcomes of ledger calls", ["outcome"])
_log = logging.getLogger("palaver.write_api")


_REFUSALS: Final[Mapping[str, tuple[str, str, str | None]]] = {
    "no_site": ("unknown-site", "No site has this id.", None),
    "no_comment": ("unknown-comment", "The site has no comment with this id, or it was deleted.", None),
    "version_mismatch": ("version-mismatch", "Read the comment again and use its newest ETag.", None),
    "thread_closed": ("thread-closed", "The thread was closed for new comments.", None),
    "key_reused": ("idempotency-key-reused", "Use a new key for a new request.", None),
    "no_parent": ("unknown-parent", "The comment to reply to is not in this thread, or was deleted.", "parent"),
    "too_deep": ("too-deep", "Replies may be nested {depth_max} levels deep.", "parent"),
}
"""Slug, detail and wrong field of the outcomes that are the client's to mend."""


def refuse(outcome: str, *, depth_max: int = 0) -> Problem:
    """Return the problem of an outcome that is not a success."""
    if outcome == "stale_epoch":
        return stale_epoch("The ledger's newest fence row is of another epoch.")
    if outcome == "unauthorized":
        return unauthorized("The key is not one of this site.")
    slug, detail, field = _REFUSALS[outcome]
    detail = detail.format(depth_max=depth_max)
    return Problem(slug, detail, errors=[FieldError(field, detail)] if field else ())


def count(record: asyncpg.Record) -> str:
    """Count and return the outcome of a call."""
    outcome: str = record["outcome"]
    _OUTCOMES.labels(outcome).inc()
    return outcome


def position_header(cell: CellId, epoch: Epoch, lsn: int) -> Header:
    """Return the `Palaver-Position` header of a write."""
    return POSITION_HEADER, encode_token(cell, Position(epoch, lsn)).encode()


def ledger_problem(error: LedgerError) -> Problem:
    """Return the problem of a call without a result, and log it.

    It speaks of this attempt only: of an earlier one that the edge made for the same request nothing is known.
    """
    _log.warning("a ledger call failed", extra={"kind": type(error).__name__, "reason": str(error)})
    match error:
        case OutcomeUnknown():
            return unavailable(
                "outcome-unknown",
                "The write was sent to the ledger and its outcome is not known. Repeat it with the same"
                " Idempotency-Key to find out.",
                repeat=b"now",
            )
        case LedgerOverloaded():
            repeat = LATER if error.repeatable else None
            return unavailable("overloaded", "The ledger is busy; this attempt wrote nothing.", repeat=repeat)
        case LedgerStuck():
            detail = "What the ledger was asked before does not end; this attempt wrote nothing."
            return unavailable("overloaded", detail, repeat=LATER)
        case LedgerUnavailable():
            detail = "The ledger takes no writes now; this attempt wrote nothing."
            return unavailable("ledger-unavailable", detail, repeat=b"now")
        case _:
            raise AssertionError(error)
