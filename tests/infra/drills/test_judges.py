"""Tests each judge of a drill on handwritten journals: a sound one, an empty one, and one for each objection.

The judges are found by their signature. A judge without a broken journal fails here, and so does an objection that no
broken journal causes.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from infra.drills import judges
from infra.drills.drill import Drill, Load
from infra.drills.evidence import (
    Evidence,
    Holdings,
    Regions,
    Span,
    WriteOutage,
    edge_outages_of,
    slowest_write_s,
    write_outages_of,
)
from infra.drills.judges import JUDGES, Check, Judge, judge
from infra.drills.runner import Outcome
from regions.identity import CellId
from regions.position import Position, encode_token
from tests.infra.objections import public_functions, texts_of, unheard

Record = dict[str, Any]
CELL = CellId("main")

DRILL = Drill.model_validate(
    {
        "name": "d",
        "title": "T",
        "hypothesis": "H.",
        "load": {"writers": 2, "unkeyed": 1, "readers": 1},
        "method": [
            {"do": "cut", "target": "leader", "label": "cut"},
            {"do": "until-writes", "label": "writes"},
        ],
        "expect": {
            "fewest": {"before": {"follower": 2}, "during": {"follower": 1}, "after": {"follower": 1, "leader": 1}},
            "reads_min": 1,
            "unkeyed_min": 1,
            "failovers": [1, 1],
            "leader_moves": True,
            "stall_s_max": 5,
            "refused": [{"since": "cut", "until": "writes"}],
            "refusal": "no quorum",
        },
    }
)


def sent(t: float, key: str, region: str = "eu", *, keyed: bool = True) -> Record:
    return {"t": t, "kind": "sent", "key": key, "region": region, "attempt": 0, "keyed": keyed}


def answered(
    kind: str, t: float, key: str, *, after: float = 0.01, region: str = "eu", keyed: bool = True, **more: Any
) -> Record:
    known: Record = {"t": t, "kind": kind, "key": key, "region": region, "sent": t - after, "keyed": keyed}
    if kind != "acknowledged":
        known |= {"reason": "a reason", "status": None, "retry_after": None}
    return known | {"id": f"id-{key}"} | more


def write(t: float, key: str, *, region: str = "eu", keyed: bool = True, lsn: int | None = None) -> list[Record]:
    position = None if lsn is None else encode_token(CELL, Position(1, lsn))
    return [
        sent(t, key, region, keyed=keyed),
        answered("acknowledged", t + 0.01, key, region=region, keyed=keyed, position=position),
    ]


def status(t: float, epoch: int, leader: str, phase: str = "serving", refusal: str | None = None) -> Record:
    return {"t": t, "kind": "status", "epoch": epoch, "leader": leader, "phase": phase, "refusal": refusal}


def step(t: float, do: str, *regions: str, process: str | None = None) -> Record:
    return {"t": t, "kind": "step", "do": do, "regions": list(regions), "process": process}


def mark(t: float, kind: str, number: int, label: str | None = None) -> Record:
    return {"t": t, "kind": kind, "step": number, "do": "cut", "label": label}


def phase(t: float, name: str) -> Record:
    return {"t": t, "kind": "phase", "phase": name}


def read(begun: float, ended: float, lsn: int, *, epoch: int = 1, served: str = "strong", code: int = 200) -> Record:
    position = encode_token(CELL, Position(epoch, lsn))
    return {
        "t": ended, "kind": "read", "sent": begun, "region": "eu", "served": served, "position": position,
        "status": code,
    }  # fmt: skip


KEYS = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2, "f": 2, "g": 2}
"""The key of each write of the sound drill, and its epoch."""

RECORDS: list[Record] = [
    phase(0.0, "before"),
    status(0.0, 1, "us"),
    *write(0.1, "a", lsn=10),
    *write(0.3, "b"),
    *write(0.5, "c", keyed=False),
    read(0.6, 0.7, 12),
    read(0.8, 0.9, 12, served="session"),
    phase(1.0, "during"),
    mark(1.0, "began", 1, "cut"),
    mark(1.1, "done", 1, "cut"),
    mark(1.1, "began", 2, "writes"),
    sent(1.2, "d"),
    answered("refused", 1.3, "d", status=503, retry_after="1"),
    status(1.4, 2, "eu", "recruiting", refusal="no quorum: 1 of 3"),
    status(1.9, 2, "eu"),
    *write(1.95, "d"),
    mark(2.0, "done", 2, "writes"),
    phase(2.0, "after"),
    *write(2.1, "e"),
    *write(2.2, "f", region="us"),
    *write(2.3, "g", keyed=False),
    read(2.4, 2.5, 1, epoch=2),
    read(2.6, 2.7, 1, epoch=2, served="session"),
    phase(3.0, "over"),
]
ROWS = [(f"id-{key}", key, epoch) for key, epoch in KEYS.items()]
IDS = [row[0] for row in ROWS]
BOTH = {"us": IDS, "eu": IDS}
SOUND = Evidence(
    drill=DRILL,
    records=RECORDS,
    holdings=Holdings(ledger=ROWS, views=BOTH, pages=BOTH, fences=[(1, "us"), (2, "eu")]),
    regions=Regions(every=["us", "eu"], roles={"leader": "us", "follower": "eu"}),
    end=4.0,
)
EMPTY = replace(SOUND, records=[], holdings=Holdings(ledger=[], views={}, pages={}, fences=[]))

Break = Callable[[Evidence], Evidence]


def and_also(*records: Record) -> Break:
    """Add records at the end."""
    return lambda evidence: replace(evidence, records=[*evidence.records, *records])


def without(**fields: object) -> Break:
    """Remove the records that have these fields."""

    def broken(evidence: Evidence) -> Evidence:
        kept = [one for one in evidence.records if not all(one.get(name) == fields[name] for name in fields)]
        assert len(kept) < len(evidence.records), f"no record has {fields}"
        return replace(evidence, records=kept)

    return broken


def holding(**changes: object) -> Break:
    """Change the contents of the databases."""

    def broken(evidence: Evidence) -> Evidence:
        changed: dict[str, Any] = changes
        return replace(evidence, holdings=replace(evidence.holdings, **changed))

    return broken


def expecting(**changes: object) -> Break:
    """Change the expectations."""

    def broken(evidence: Evidence) -> Evidence:
        expect = evidence.drill.expect.model_copy(update=changes)
        return replace(evidence, drill=evidence.drill.model_copy(update={"expect": expect}))

    return broken


def all_of(*breaks: Break) -> Break:
    def broken(evidence: Evidence) -> Evidence:
        for one in breaks:
            evidence = one(evidence)
        return evidence

    return broken


FEW = IDS[:-1]
NO_SESSION_AFTER = all_of(without(kind="read", sent=2.6), and_also(read(0.85, 0.9, 12, served="session")))

BROKEN: dict[Judge, list[tuple[str, Break, str]]] = {
    judges.the_method_is_executed: [
        ("a missing step", without(kind="done", step=2), "step 2 (until-writes) was not executed"),
    ],
    judges.acknowledged_writes_are_in_the_ledger: [
        ("a row is lost", holding(ledger=ROWS[:-1]), "id-g, acknowledged at 2.310 s through eu, is missing"),
    ],
    judges.acknowledged_writes_are_in_every_region: [
        ("a view lacks a row", holding(views={"us": IDS, "eu": FEW}), "id-g, acknowledged"),
        ("pages lack a row", holding(pages={"us": IDS, "eu": FEW}), "id-g, acknowledged"),
        ("a view was not read", holding(views={"us": IDS}), "too little evidence: 0 samples, at least 5 needed"),
        ("pages were not read", holding(pages={"us": IDS}), "too little evidence: 0 samples, at least 5 needed"),
        ("a phantom", holding(views={"us": IDS, "eu": [*IDS, "id-x"]}), "id-x is in the view of eu and not in"),
        ("a double", holding(pages={"us": IDS, "eu": [*IDS, "id-a"]}), "id-a occurs 2 times in the pages of eu"),
    ],
    judges.no_key_is_applied_twice: [
        ("two rows", holding(ledger=[*ROWS, ("id-x", "a", 1)]), "key a has 2 rows"),
        ("an unsent row", holding(ledger=[*ROWS, ("id-x", "x", 1)]), "row id-x has a key that no client sent"),
        (
            "another id",
            and_also(answered("acknowledged", 2, "a", id="id-z")),
            "a was answered with id-z; its row is id-a",
        ),
    ],
    judges.one_writer_per_epoch: [
        ("agents disagree", and_also(status(2.9, 2, "us")), "epoch 2 has the leaders eu and us"),
        ("the fence is another's", holding(fences=[(1, "us"), (2, "us")]), "epoch 2 has the leaders eu and us"),
        (
            "a row of no epoch",
            holding(ledger=[*ROWS, ("id-x", "x", 7)]),
            "row id-x is of epoch 7, which has no fence row",
        ),
        ("no fence", all_of(and_also(status(3, 3, "us"))), "epoch 3 served without a fence row"),
        ("no second epoch", without(kind="status", epoch=2), "too little evidence: 1 samples, at least 2 needed"),
    ],
    judges.strong_reads_never_go_back: [
        ("below an earlier one", and_also(read(2.8, 2.9, 12)), "at 2.900 s eu showed"),
        ("an older epoch", and_also(read(2.8, 2.9, 99, epoch=1)), "at 2.900 s eu showed"),
        ("below an acknowledged write", and_also(read(0.2, 0.3, 9)), "at 0.300 s eu showed"),
        ("no position", and_also(read(2.8, 2.9, 1) | {"position": None}), "at 2.900 s eu showed no position"),
        ("none after the fault", without(kind="read", sent=2.4), "too little evidence: 0 samples after the fault"),
        ("none before the fault", without(kind="read", sent=0.6), "too little evidence: 0 samples before the fault"),
    ],
    judges.sessions_see_their_own_writes: [
        ("not found", and_also(read(2.8, 2.9, 1, served="session", code=404)), "eu answered 404 to a session read"),
        ("none after the fault", NO_SESSION_AFTER, "too little evidence: 0 samples after the fault"),
    ],
    judges.no_answer_is_an_internal_error: [
        (
            "a reader",
            and_also(read(2.8, 2.9, 1, served="", code=500)),
            "at 2.900 s eu answered 500 to a request sent at",
        ),
        (
            "a writer",
            and_also(answered("refused", 2.9, "x", status=500)),
            "at 2.900 s eu answered 500 to a request sent at",
        ),
    ],
    judges.unkeyed_writes_get_a_clear_answer: [
        ("no Retry-After", and_also(answered("refused", 2.9, "x", keyed=False, status=503)), "eu answered 503"),
        ("500", and_also(answered("refused", 2.9, "x", keyed=False, status=500, retry_after="1")), "eu answered 500"),
        ("broken", and_also(answered("unknown", 2.9, "x", keyed=False)), "eu answered nothing (a reason)"),
        (
            "400 from an edge that is down",
            and_also(step(2.8, "kill", "eu"), answered("refused", 2.9, "x", keyed=False, status=400)),
            "eu answered 400",
        ),
        ("none after the fault", without(key="g"), "too little evidence: 0 samples after the fault"),
    ],
    judges.keyed_writers_see_no_error: [
        ("503", and_also(answered("refused", 2.9, "x", status=503, retry_after="1")), "eu answered 503"),
        ("broken", and_also(answered("unknown", 2.9, "x")), "eu answered nothing (a reason) to a request sent at"),
        ("before the window", and_also(answered("refused", 0.9, "x", status=503)), "at 0.900 s eu answered 503"),
        ("no answer in the window", and_also(answered("unknown", 1.5, "x")), "at 1.500 s eu answered nothing"),
        ("400 in the window", and_also(answered("refused", 1.5, "x", status=400)), "at 1.500 s eu answered 400"),
        (
            "the window of another edge",
            expecting(refused=(DRILL.expect.refused[0].model_copy(update={"edges": "leader"}),)),
            "at 1.300 s eu answered 503",
        ),
    ],
    judges.keyed_writes_are_acknowledged_in_the_end: [
        ("one waits for ever", and_also(sent(2.9, "x")), "key x, sent at 2.900 s through eu, was never acknowledged"),
    ],
    judges.writes_are_acknowledged_in_each_phase: [
        ("too few before", without(key="a"), "eu, the follower, acknowledged 1 writes, at least 2 were expected"),
        ("none during", without(key="d"), "eu, the follower, acknowledged 0 writes, at least 1 were expected"),
        ("none through one edge", without(key="f"), "us, the leader, acknowledged 0 writes"),
        ("no phase", without(kind="phase", phase="after"), "acknowledged 0 writes"),
        ("no such role", lambda one: replace(one, regions=Regions(every=["eu"], roles={})), "no region, the"),
    ],
    judges.epochs_are_as_expected: [
        ("too many", expecting(failovers=(0, 0)), "1 epochs began, 0 to 0 were expected"),
        ("too few", expecting(failovers=(2, 3)), "1 epochs began, 2 to 3 were expected"),
        ("the leader moved", expecting(leader_moves=False), "us led before and eu leads now"),
        ("the leader stayed", and_also(status(2.9, 2, "us")), "us led before and us leads now"),
        ("not serving", and_also(status(2.9, 2, "eu", "recruiting")), "at the end the cell is recruiting"),
        ("unknown before", without(kind="status", epoch=1), "no agent reported the leader before the fault"),
    ],
    judges.write_outages_are_short: [
        ("too long", expecting(stall_s_max=0.5), "0.76 s without an acknowledgement from 1.200 s on"),
        (
            "still open",
            lambda one: replace(and_also(sent(2.9, "x"))(one), end=9),
            "6.10 s without an acknowledgement from 2.900 s on",
        ),
        ("at the start", and_also(sent(-9, "x")), "9.11 s without an acknowledgement"),
    ],
    judges.refusals_say_why: [
        ("another reason", expecting(refusal="a full disk"), "'a full disk' was never shown, but ['no quorum"),
        (
            "shown too early",
            all_of(without(kind="status", t=1.4), and_also(status(0.5, 1, "us", refusal="no quorum"))),
            "'no quorum' was never shown, but []",
        ),
    ],
}


def lines_of(checks: Sequence[Check]) -> list[str]:
    return [line for check in checks for line in check.failed]


def test_every_judge_is_registered_and_has_a_broken_journal() -> None:
    found = public_functions(judges, "list[Check]")
    found.pop("judge")
    assert set(found.values()) == set(JUDGES)
    assert set(BROKEN) == set(JUDGES)
    assert all(BROKEN.values())


@pytest.mark.parametrize("one", JUDGES, ids=lambda one: one.__name__)
def test_a_judge_accepts_a_sound_journal_and_rejects_an_empty_one(one: Judge) -> None:
    assert lines_of(one(SOUND)) == []
    assert one(EMPTY)
    assert all(check.failed and check.counted == 0 for check in one(EMPTY))
    assert all(check.failed[0].startswith("too little evidence: 0 samples, at least ") for check in one(EMPTY))


@pytest.mark.parametrize(
    ("one", "broken", "says"),
    [
        pytest.param(one, broken, says, id=f"{one.__name__}: {what}")
        for one, breaks in BROKEN.items()
        for what, broken, says in breaks
    ],
)
def test_a_judge_rejects_a_broken_journal(one: Judge, broken: Break, says: str) -> None:
    assert any(says in line for line in lines_of(one(broken(SOUND)))), lines_of(one(broken(SOUND)))


def test_a_broken_journal_causes_each_objection_of_each_judge() -> None:
    said = [
        line
        for one, breaks in BROKEN.items()
        for evidence in (EMPTY, *(broken(SOUND) for _, broken, _ in breaks))
        for check in one(evidence)
        for line in (check.name, *check.failed)
    ]
    tree = ast.parse(inspect.getsource(judges))
    patterns = texts_of(node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert len(patterns) > 20
    assert unheard(patterns, said) == []


def test_a_drill_without_writes_fails_every_check_of_writes() -> None:
    only_status = [record for record in RECORDS if record["kind"] in ("phase", "began", "done", "status")]
    checks = judge(replace(EMPTY, records=only_status, holdings=replace(SOUND.holdings, ledger=[], views={}, pages={})))
    held = {check.name for check in checks if not check.failed}
    assert held == {
        "every step is executed",
        "an epoch has one writer",
        "epochs are as expected",
        "the status shows why writes are refused",
    }


def test_a_drill_fails_if_writes_are_refused_until_its_end() -> None:
    refused = [answered("refused", 1 + number / 10, "x", status=503) for number in range(10)]
    outage = [record for record in RECORDS if record["t"] < 1 or "key" not in record]
    evidence = replace(SOUND, records=[*outage, sent(1.0, "x"), *refused], end=30.0)
    failed = {check.name for check in judge(evidence) if check.failed}
    assert {"every keyed write is acknowledged in the end", "no write outage is longer than 5 s"} <= failed
    outcome = Outcome(evidence=evidence, seed=1, checks=judge(evidence), seconds=30, trouble=None)
    assert not outcome.passed
    assert outcome.longest_stall_s == pytest.approx(29.0)


def test_an_outcome_passes_only_with_checks_that_hold() -> None:
    sound = Outcome(evidence=SOUND, seed=1, checks=judge(SOUND), seconds=1, trouble=None)
    assert sound.passed
    assert sound.longest_stall_s == pytest.approx(0.76)
    assert not replace(sound, checks=[]).passed
    assert not replace(sound, trouble="a step failed").passed
    assert replace(sound, evidence=EMPTY).longest_stall_s is None


def test_checks_of_clients_that_a_drill_does_not_have_are_left_out() -> None:
    drill = DRILL.model_copy(update={"load": Load(unkeyed=0, readers=0)})
    evidence = replace(SOUND, drill=drill)
    assert len(judge(SOUND)) - len(judge(evidence)) == 3
    assert judges.refusals_say_why(expecting(refusal=None)(SOUND)) == []


@pytest.mark.parametrize(
    "broken",
    [
        without(key="a"),
        without(kind="read", sent=0.6),
        without(kind="read", sent=0.8),
        without(key="c"),
    ],
    ids=["writes", "strong reads", "session reads", "writes without a key"],
)
def test_a_phase_has_enough_when_it_has_each_declared_number(broken: Break) -> None:
    assert judges.has_enough(SOUND, "before")
    assert judges.has_enough(SOUND, "after")
    assert not judges.has_enough(broken(SOUND), "before")
    assert not judges.has_enough(EMPTY, "before")


def test_the_fault_phase_has_enough_when_each_edge_acknowledged_its_least_number() -> None:
    assert judges.has_enough(SOUND, "during")
    assert not judges.has_enough(without(key="d")(SOUND), "during")
    fewest = DRILL.expect.fewest.model_copy(update={"during": {"follower": 1, "leader": 1}})
    assert not judges.has_enough(expecting(fewest=fewest)(SOUND), "during")


def test_a_check_counts_excused_facts() -> None:
    (check,) = judges.keyed_writers_see_no_error(SOUND)
    assert (check.counted, check.excused, check.failed) == (6, 1, ())
    killed = and_also(step(2.8, "kill", "eu"), answered("unknown", 2.9, "x"))(SOUND)
    (check,) = judges.keyed_writers_see_no_error(killed)
    assert (check.excused, check.failed) == (2, ())


def test_a_strong_read_is_compared_with_every_read_that_ended_before_it() -> None:
    slow, many = read(0.0, 10.0, 100), [read(1 + n / 100, 1.005 + n / 100, 50) for n in range(300)]
    evidence = replace(SOUND, records=[slow, *many, read(11, 12, 60)])
    assert "at 12.000 s eu showed" in str(lines_of(judges.strong_reads_never_go_back(evidence)))
    beside = replace(SOUND, records=[read(1, 4, 10), read(2, 5, 9), read(3, 3.5, 1, served="eventual")])
    assert "showed" not in str(lines_of(judges.strong_reads_never_go_back(beside)))


def test_a_write_outage_is_measured_from_the_first_delayed_write() -> None:
    steady = [record for number in range(20) for record in write(number * 0.1, f"k{number}")]
    # The first was under way when the leader died, the second was sent later and is acknowledged first.
    stalled = [
        sent(1.95, "first"),
        sent(2.5, "second"),
        answered("acknowledged", 4.0, "second"),
        answered("acknowledged", 4.1, "first"),
    ]
    assert write_outages_of(steady, end=9) == []
    assert write_outages_of([*steady, *stalled], end=9) == [WriteOutage(first=1.95, end=4.0)]


def test_an_open_write_outage_lasts_until_the_end_of_the_drill() -> None:
    steady = [record for number in range(20) for record in write(number * 0.1, f"k{number}")]
    assert write_outages_of([*steady, sent(1.95, "open")], end=9) == [WriteOutage(first=1.95, end=9)]
    assert write_outages_of([sent(1.0, "open")], end=9) == [WriteOutage(first=1.0, end=9)]
    late = [
        sent(1.0, "late"),
        sent(4.0, "b"),
        answered("acknowledged", 4.25, "b"),
        answered("acknowledged", 4.3, "late"),
    ]
    assert write_outages_of(late, end=9) == [WriteOutage(first=1.0, end=4.25)]
    assert write_outages_of([], end=9) == []


def test_a_write_that_waits_at_the_one_edge_that_may_refuse_is_no_write_outage() -> None:
    others = [record for number in range(20) for record in write(number * 0.3, f"k{number}", region="us")]
    waits = [sent(0.9, "cut-off"), answered("acknowledged", 5.0, "cut-off")]
    cut = Span(region="eu", since=1, until=5)
    assert max(one.seconds for one in write_outages_of([*others, *waits], end=9)) > 3.5
    assert max(one.seconds for one in write_outages_of([*others, *waits], end=9, apart=[cut])) < 1
    assert (
        max(one.seconds for one in write_outages_of([*others, *waits], end=9, apart=[replace(cut, region="us")])) > 3.5
    )
    at_edge = expecting(refused=(DRILL.expect.refused[0].model_copy(update={"edges": "follower"}),))
    assert [stall.first for stall in SOUND.write_outages] == [1.2]
    assert [stall.first for stall in at_edge(SOUND).write_outages] == [0.31]
    assert judges.write_outages_are_short(at_edge(SOUND))[0].failed == ()


@pytest.mark.parametrize(
    "attempts",
    [
        # It waited at the cut edge for as long as the edge retries, and then at the other edge.
        [
            sent(0.9, "x"),
            answered("refused", 4.6, "x", after=3.7, status=503),
            sent(4.6, "x", "us"),
            answered("acknowledged", 5.0, "x", after=0.4, region="us"),
        ],
        # The client tried the cut edge after another edge.
        [
            sent(0.9, "x", "us"),
            answered("refused", 1.0, "x", after=0.1, region="us", status=None),
            sent(1.0, "x"),
            answered("unknown", 2.0, "x", after=1.0),
            sent(2.0, "x", "us"),
            answered("acknowledged", 5.0, "x", after=3.0, region="us"),
        ],
        # Its last attempt got no answer.
        [sent(0.9, "x", "us"), answered("unknown", 3.0, "x", after=2.1, region="us"), sent(3.0, "x")],
    ],
)
def test_a_write_with_one_attempt_at_the_edge_that_may_refuse_is_no_write_outage(attempts: list[Record]) -> None:
    others = [record for number in range(20) for record in write(number * 0.3, f"k{number}", region="us")]
    cut = Span(region="eu", since=1, until=4)

    def longest(*apart: Span) -> float:
        ordered = sorted([*others, *attempts], key=lambda record: record["t"])
        return max(one.seconds for one in write_outages_of(ordered, end=5.5, apart=apart))

    assert longest() > 3.5
    assert longest(cut) < 1
    # It counts if each attempt at that edge ended before the cut or began after it.
    assert longest(replace(cut, since=0.1, until=0.5), replace(cut, since=5.6, until=6)) > 3.5


def test_a_window_of_refusals_ends_at_each_edge_when_that_edge_acknowledges_a_write() -> None:
    def ends(*more: Record, drill: Drill = DRILL, until: float = 5.0) -> dict[str, float]:
        kept = [one for one in RECORDS if one["t"] < 2.0]
        records = [*kept, mark(2.0, "done", 2, "writes"), *more, phase(until, "after"), phase(until + 1, "over")]
        evidence = replace(SOUND, drill=drill, records=records, end=until + 2)
        return {span.region: round(span.until, 2) for span in evidence.refused}

    # Only eu has acknowledged a write; us may not know the new leader yet.
    assert ends() == {"us": 5.0, "eu": 2.0}
    late = answered("refused", 2.4, "y", after=0.2, region="us", status=503)
    assert ends(late, *write(2.6, "y", region="us")) == {"us": 2.61, "eu": 2.0}
    # A write that was sent before the step does not end the window, and neither does a write without a key.
    early = answered("acknowledged", 2.2, "early", after=1.15, region="us")
    assert ends(early, *write(2.3, "n", region="us", keyed=False)) == {"us": 5.0, "eu": 2.0}
    # The window ends with the method at the latest. Edges outside of the window do not matter.
    assert ends(until=2.5) == {"us": 2.5, "eu": 2.0}
    alone = expecting(refused=(DRILL.expect.refused[0].model_copy(update={"edges": "leader"}),))(SOUND).drill
    assert ends(*write(2.6, "y", region="us"), drill=alone) == {"us": 2.61}
    # A refusal after the window is an error.
    refused = and_also(answered("refused", 2.9, "z", region="us", status=503, after=0.1))(SOUND)
    assert "at 2.900 s us answered 503" in str(lines_of(judges.keyed_writers_see_no_error(refused)))


def test_the_slowest_write_is_measured_from_its_first_attempt_also_if_it_still_waits() -> None:
    sent_twice = [sent(1.0, "a"), sent(1.2, "b"), sent(1.8, "a"), answered("acknowledged", 2.0, "b")]
    assert slowest_write_s([*sent_twice, answered("acknowledged", 2.5, "a")], end=9) == pytest.approx(1.5)
    assert slowest_write_s(sent_twice, end=9) == pytest.approx(8.0)
    assert slowest_write_s([], end=9) is None


def test_an_edge_is_excused_from_a_kill_until_its_region_is_healthy() -> None:
    records = [step(1, "kill", "eu"), step(3, "restart", "eu"), step(5, "restarted", "eu"), step(7, "pause", "us")]
    eu, us = Span(region="eu", since=1, until=5), Span(region="us", since=7, until=9)
    assert edge_outages_of(records, end=9) == [eu, us]


def test_an_edge_is_not_excused_after_it_acknowledges_a_write_sent_after_the_restart() -> None:
    killed = [step(1, "kill", "eu"), answered("acknowledged", 1.1, "dying", after=0.05)]
    restarted = [*killed, step(3, "restart", "eu")]
    back = [*restarted, answered("acknowledged", 3.5, "a", after=0.25), step(5, "restarted", "eu")]
    assert edge_outages_of(killed, end=9) == [Span(region="eu", since=1, until=9)]
    assert edge_outages_of(back, end=9) == [Span(region="eu", since=1, until=3.25)]
    late = [*restarted, answered("acknowledged", 3.5, "a", after=1.5), step(5, "restarted", "eu")]
    assert edge_outages_of(late, end=9) == [Span(region="eu", since=1, until=5)]


def test_a_fault_of_another_process_does_not_excuse_an_edge() -> None:
    assert edge_outages_of([step(1, "kill", "eu", process="ledger")], end=9) == []
    envoy = [step(1, "kill", "eu", process="envoy"), step(2, "resume", "eu", process="region_agent")]
    assert edge_outages_of(envoy, end=9) == [Span(region="eu", since=1, until=9)]
