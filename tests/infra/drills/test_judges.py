"""Each judge of a drill, on journals that were written by hand: what holds, and each way in which it does not."""

from dataclasses import replace
from typing import Any

import pytest

from infra.drills.drill import Expect
from infra.drills.judges import (
    Check,
    Holdings,
    Stall,
    acknowledged_writes_are_in_every_region,
    acknowledged_writes_are_in_the_ledger,
    epochs_are_as_expected,
    hurt_spans,
    judge,
    keyed_writers_see_no_error,
    no_key_is_applied_twice,
    nobody_is_told_of_an_internal_error,
    one_writer_per_epoch,
    refusals_say_why,
    sessions_see_their_own_writes,
    slowest_write_s,
    stalls_are_short,
    stalls_of,
    strong_reads_never_go_back,
    unkeyed_writers_are_told_clearly,
)
from regions.identity import CellId
from regions.position import Position, encode_token

Record = dict[str, Any]
CELL = CellId("main")


def sent(t: float, key: str, region: str = "eu", *, keyed: bool = True) -> Record:
    return {"t": t, "kind": "sent", "key": key, "region": region, "attempt": 0, "keyed": keyed}


def told(
    kind: str, t: float, key: str, *, after: float = 0.01, region: str = "eu", keyed: bool = True, **more: Any
) -> Record:
    known: Record = {"t": t, "kind": kind, "key": key, "region": region, "sent": t - after, "keyed": keyed}
    return known | {"id": f"id-{key}", "reason": "a reason", "status": None, "retry_after": None} | more


def write(t: float, key: str, **more: Any) -> list[Record]:
    return [sent(t, key), told("acknowledged", t + 0.01, key, **more)]


def status(t: float, epoch: int, leader: str, phase: str = "serving", refusal: str | None = None) -> Record:
    return {"t": t, "kind": "status", "epoch": epoch, "leader": leader, "phase": phase, "refusal": refusal}


def step(t: float, do: str, *regions: str, process: str | None = None) -> Record:
    return {"t": t, "kind": "step", "do": do, "regions": list(regions), "process": process}


def read(begun: float, ended: float, lsn: int, *, epoch: int = 1, served: str = "strong", code: int = 200) -> Record:
    position = encode_token(CELL, Position(epoch, lsn))
    return {
        "t": ended, "kind": "read", "sent": begun, "region": "eu", "served": served, "position": position,
        "status": code,
    }  # fmt: skip


def held(*keys: str, epoch: int = 1) -> Holdings:
    rows = [(f"id-{key}", key, epoch) for key in keys]
    ids = [row[0] for row in rows]
    both = {"us": ids, "eu": ids}
    return Holdings(ledger=rows, views=both, pages=both, fences=[(1, "us")])


def holds(check: Check) -> bool:
    return not check.failed and check.counted > 0


def test_a_lost_write_is_noticed_in_the_ledger_and_in_a_view() -> None:
    records = [*write(1, "a"), *write(2, "b")]
    assert holds(acknowledged_writes_are_in_the_ledger(records, held("a", "b")))
    assert "id-b" in acknowledged_writes_are_in_the_ledger(records, held("a")).failed[0]
    all_there = held("a", "b")
    without = {"us": ["id-a", "id-b"], "eu": ["id-a"]}
    for what, where in (("views", "the view"), ("pages", "the pages")):
        judged = acknowledged_writes_are_in_every_region(records, replace(all_there, **{what: without}))
        failed = [check.name for check in judged if check.failed]
        assert failed == [f"every acknowledged write is in {where} of eu"]


def test_a_view_that_holds_a_phantom_or_a_double_is_noticed() -> None:
    phantom = replace(held("a"), views={"eu": ["id-a", "id-x"]})
    double = replace(held("a"), views={"eu": ["id-a", "id-a"]})
    assert "not in the ledger" in acknowledged_writes_are_in_every_region(write(1, "a"), phantom)[1].failed[0]
    assert "twice" in acknowledged_writes_are_in_every_region(write(1, "a"), double)[1].failed[0]


def test_a_key_that_was_applied_twice_or_answered_with_another_id_is_noticed() -> None:
    records = write(1, "a")
    assert holds(no_key_is_applied_twice(records, held("a")))
    twice = Holdings(ledger=[("id-a", "a", 1), ("id-b", "a", 1)], views={}, pages={}, fences=[(1, "us")])
    assert "key a is 2 rows" in no_key_is_applied_twice(records, twice).failed
    other = no_key_is_applied_twice([*records, told("acknowledged", 2, "a", id="id-z")], held("a"))
    assert "was answered with id-z" in other.failed[0]
    assert "nobody's key" in no_key_is_applied_twice(records, held("a", "b")).failed[0]


def test_two_leaders_of_one_epoch_and_a_row_of_no_epoch_are_noticed() -> None:
    assert holds(one_writer_per_epoch([status(1, 1, "us")], held("a")))
    assert "eu and us" in one_writer_per_epoch([status(1, 1, "eu")], held("a")).failed[0]
    assert "is of epoch 7" in one_writer_per_epoch([], held("a", epoch=7)).failed[0]


def test_a_strong_read_that_goes_back_is_noticed_and_one_that_ran_beside_another_is_not() -> None:
    assert holds(strong_reads_never_go_back([read(1, 2, 10), read(3, 4, 10), read(5, 6, 11)]))
    assert strong_reads_never_go_back([read(1, 2, 10), read(3, 4, 9)]).failed
    assert strong_reads_never_go_back([read(1, 2, 10, epoch=2), read(3, 4, 99, epoch=1)]).failed
    assert not strong_reads_never_go_back([read(1, 4, 10), read(2, 5, 9)]).failed
    assert not strong_reads_never_go_back([read(1, 2, 10), read(3, 4, 9, served="eventual")]).failed


def test_a_session_that_does_not_see_its_own_write_is_noticed() -> None:
    assert holds(sessions_see_their_own_writes([read(1, 2, 1, served="session")]))
    assert sessions_see_their_own_writes([read(1, 2, 1, served="session", code=404)]).failed
    assert not sessions_see_their_own_writes([read(1, 2, 1, served="eventual", code=404)]).failed


def test_an_internal_error_is_noticed_whoever_is_told() -> None:
    assert holds(nobody_is_told_of_an_internal_error([read(1, 2, 1), told("refused", 1, "a", keyed=True, status=503)]))
    assert nobody_is_told_of_an_internal_error([read(1, 2, 1, served="", code=500)]).failed
    assert nobody_is_told_of_an_internal_error([told("refused", 1, "a", keyed=True, status=500)]).failed


def test_a_writer_without_a_key_may_be_told_503_with_retry_after_and_nothing_else() -> None:
    def check(*records: Record) -> Check:
        return unkeyed_writers_are_told_clearly(records, end=9)

    assert holds(check(told("acknowledged", 1, "a", keyed=False)))
    assert holds(check(told("refused", 1, "a", keyed=False, status=503, retry_after="1")))
    assert check(told("refused", 1, "a", keyed=False, status=503)).failed
    assert check(told("refused", 1, "a", keyed=False, status=500, retry_after="1")).failed
    assert check(told("unknown", 1, "a", keyed=False)).failed
    assert not check(step(0.5, "kill", "eu"), told("unknown", 1, "a", keyed=False)).failed


def test_a_keyed_writer_that_sees_an_error_at_a_living_edge_is_noticed() -> None:
    def check(*records: Record, refused_max: int = 0) -> Check:
        return keyed_writers_see_no_error(records, Expect(refused_max=refused_max), end=9)

    assert holds(check(*write(1, "a")))
    assert check(told("refused", 1, "a", status=503, retry_after="1")).failed
    assert check(told("unknown", 1, "a")).failed
    assert not check(told("refused", 1, "a", status=503), refused_max=1).failed
    # The edge of a region that is dead owes nothing, until it is back, and not because of a process beside it.
    assert not check(step(0.5, "kill", "eu"), told("unknown", 1, "a")).failed
    assert check(step(0.5, "kill", "us"), told("unknown", 1, "a")).failed
    assert check(step(0.5, "kill", "eu"), step(0.8, "restarted", "eu"), told("unknown", 1, "a", after=0.1)).failed
    assert check(step(0.5, "kill", "eu", process="ledger"), told("unknown", 1, "a")).failed


def test_epochs_that_were_not_expected_are_noticed() -> None:
    moved = [status(0, 1, "us"), status(3, 2, "eu", "recruiting"), status(4, 2, "eu")]
    assert holds(epochs_are_as_expected(moved, Expect(failovers=(1, 1), leader_moves=True)))
    assert epochs_are_as_expected(moved, Expect(failovers=(0, 0))).failed
    assert epochs_are_as_expected(moved, Expect(failovers=(1, 1), leader_moves=False)).failed
    assert epochs_are_as_expected(moved[:2], Expect(failovers=(1, 1))).failed
    assert epochs_are_as_expected([], Expect()).failed


def test_a_stall_is_measured_from_the_first_write_that_suffered_it() -> None:
    steady = [record for number in range(20) for record in write(number * 0.1, f"k{number}")]
    # One was on its way when the leader died, one was sent later; the one that was sent later is answered first.
    stalled = [
        sent(1.95, "first"),
        sent(2.5, "second"),
        told("acknowledged", 4.0, "second"),
        told("acknowledged", 4.1, "first"),
    ]
    assert stalls_of(steady) == []
    assert stalls_of([*steady, *stalled]) == [Stall(first=1.95, end=4.0)]
    assert not stalls_are_short([*steady, *stalled], Expect(stall_s_max=2.1)).failed
    assert stalls_are_short([*steady, *stalled], Expect(stall_s_max=2.0)).failed


def test_the_slowest_write_is_measured_from_its_first_attempt() -> None:
    sent_twice = [sent(1.0, "a"), sent(1.2, "b"), sent(1.8, "a"), told("acknowledged", 2.0, "b")]
    assert slowest_write_s(sent_twice) == pytest.approx(0.8)
    assert slowest_write_s([*sent_twice, told("acknowledged", 2.5, "a")]) == pytest.approx(1.5)
    assert slowest_write_s([sent(1.0, "a")]) is None


def test_a_refusal_that_is_never_explained_is_noticed() -> None:
    lost = [status(1, 1, "us", refusal="no quorum: 1 of 3 voters")]
    assert [holds(check) for check in refusals_say_why(lost, Expect(refusal="no quorum"))] == [True]
    assert refusals_say_why([status(1, 1, "us")], Expect(refusal="no quorum"))[0].failed
    assert refusals_say_why(lost, Expect()) == []


def test_an_edge_is_hurt_from_a_kill_until_its_region_is_healthy_again() -> None:
    records = [step(1, "kill", "eu"), step(3, "restart", "eu"), step(5, "restarted", "eu"), step(7, "pause", "us")]
    assert hurt_spans(records, end=9) == [("eu", 1, 5), ("us", 7, 9)]


def test_everything_is_judged() -> None:
    checks = judge([status(0, 1, "us"), *write(1, "a")], held("a"), Expect(refusal="x"), end=2)
    assert len({check.name for check in checks}) == len(checks) == 19
