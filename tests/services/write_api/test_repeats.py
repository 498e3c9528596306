"""Which refusals of the write API the edge may repeat."""

import pytest

from regions.edge import REPEAT_HEADER as EDGE_HEADER
from services.api.problems import REPEAT_HEADER
from services.write_api.leadership import stale_epoch
from services.write_api.outcomes import ledger_problem, refuse
from services.write_api.pool import (
    REPEATS_MAX,
    LedgerError,
    LedgerOverloaded,
    LedgerStuck,
    LedgerUnavailable,
    OutcomeUnknown,
    RepeatBudget,
)


def test_the_edge_and_the_write_api_speak_of_one_header() -> None:
    assert EDGE_HEADER.encode() == REPEAT_HEADER


@pytest.mark.parametrize(
    ("error", "slug", "repeat"),
    [
        (OutcomeUnknown("the connection broke"), "outcome-unknown", b"now"),
        (LedgerUnavailable("it takes no writes"), "ledger-unavailable", b"now"),
        (LedgerStuck("a lock"), "overloaded", b"1"),
        (LedgerOverloaded("full", repeatable=True), "overloaded", b"1"),
        (LedgerOverloaded("full"), "overloaded", None),
    ],
)
def test_only_what_a_repetition_may_mend_is_repeated(error: LedgerError, slug: str, repeat: bytes | None) -> None:
    problem = ledger_problem(error)
    headers = dict(problem.headers)
    assert (problem.slug, problem.status, headers.get(REPEAT_HEADER)) == (slug, 503, repeat)
    # The edge waits as long as a client is asked to.
    assert headers[b"retry-after"] == b"1"


def test_another_epoch_is_repeated_at_once_and_a_refusal_never() -> None:
    assert dict(stale_epoch("it moved").headers)[REPEAT_HEADER] == b"now"
    assert REPEAT_HEADER not in dict(refuse("thread_closed").headers)


def test_repetitions_under_overload_are_a_tenth_of_the_writes_that_were_done() -> None:
    budget = RepeatBudget()
    assert sum(budget.spend() for _ in range(1_000)) == REPEATS_MAX
    for _ in range(1_001):
        budget.earn()
    assert sum(budget.spend() for _ in range(1_000)) == 100
    assert not budget.spend()
