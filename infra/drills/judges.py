"""Judges a drill by its evidence. Pure functions, each from the evidence to checks.

What must hold in every drill: acknowledged writes are in the ledger and in every view, no key was applied twice, an
epoch has one writer, a strong read never goes back, a session sees its own writes, and whoever writes without a key is
told 503 with Retry-After or nothing worse. What a drill expects besides is in its file.

A check rests on facts, and has a least number of them: one that rests on fewer has failed. So a drill in which nobody
wrote, or nobody read, has not passed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate

from infra.drills.drill import PHASES, Phase
from infra.drills.evidence import Evidence, Record, is_excused
from regions.position import Position, decode_token

PHASE_WORDS: Mapping[Phase, str] = {
    "before": "before the fault",
    "during": "during the fault",
    "after": "after the fault",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was judged.

    Attributes:
        name: What must hold, as a sentence.
        failed: What does not, one line each; empty when it holds.
        counted: On how many facts the judgement rests.
        least: On how many it must rest.
        excused: How many of them would fail it, were they not expected.
    """

    name: str
    failed: tuple[str, ...]
    counted: int
    least: int
    excused: int = 0


Judge = Callable[[Evidence], list[Check]]


def judge(evidence: Evidence) -> list[Check]:
    """Return every check of a drill, in the order of importance."""
    return [check for one in JUDGES for check in one(evidence)]


def has_enough(evidence: Evidence, phase: Phase) -> bool:
    """Whether the load has run for long enough in a phase: a slow machine takes longer."""
    expect, load = evidence.drill.expect, evidence.drill.load
    roles = evidence.regions.roles
    if any(
        evidence.acknowledged(phase, roles.get(role, "")) < least for role, least in expect.fewest.of(phase).items()
    ):
        return False
    if phase == "during":
        # Reads and writes without a key owe nothing while the fault lasts.
        return True
    reads = [_reads(evidence, served) for served in ("strong", "session")] if load.readers else []
    unkeyed = [evidence.writes(keyed=False)] if load.unkeyed else []
    wanted = [*((facts, expect.reads_min) for facts in reads), *((facts, expect.unkeyed_min) for facts in unkeyed)]
    return all(sum(evidence.during(phase, one) for one in facts) >= least for facts, least in wanted)


def _judged(name: str, failed: Iterable[str], *, counted: int, least: int, excused: int = 0) -> Check:
    assert least > 0, "a check that may rest on nothing is none"
    lines = [f"too little evidence: {counted} samples, at least {least} needed"] if counted < least else []
    return Check(name=name, failed=(*lines, *failed), counted=counted, least=least, excused=excused)


def acknowledged_writes_are_in_the_ledger(evidence: Evidence) -> list[Check]:
    """Nothing that was acknowledged is lost."""
    held = {comment for comment, _, _ in evidence.holdings.ledger}
    return [_all_there("every acknowledged write is in the ledger", evidence, held)]


def acknowledged_writes_are_in_every_region(evidence: Evidence) -> list[Check]:
    """Every region shows everything that was acknowledged, and nothing that the ledger does not hold."""
    checks: list[Check] = []
    holdings = evidence.holdings
    ledger = {comment for comment, _, _ in holdings.ledger}
    shown = [(f"the view of {region}", holdings.views.get(region, ())) for region in evidence.regions.every]
    shown += [(f"the pages of {region}", holdings.pages.get(region, ())) for region in evidence.regions.every]
    for where, ids in shown:
        checks.append(_all_there(f"every acknowledged write is in {where}", evidence, set(ids)))
        failed = [f"{comment} is in {where} and not in the ledger" for comment in sorted(set(ids) - ledger)]
        failed += [f"{comment} is {count} times in {where}" for comment, count in Counter(ids).items() if count > 1]
        name = f"nothing else is in {where}"
        checks.append(_judged(name, failed, counted=len(ids), least=evidence.writes_least))
    return checks


def _all_there(name: str, evidence: Evidence, held: set[str]) -> Check:
    acknowledged = evidence.of_kind("acknowledged")
    missing = [
        f"{record['id']}, acknowledged at {record['t']:.3f} s through {record['region']}, is missing"
        for record in acknowledged
        if record["id"] not in held
    ]
    return _judged(name, missing, counted=len(acknowledged), least=evidence.writes_least)


def no_key_is_applied_twice(evidence: Evidence) -> list[Check]:
    """A key is one row, and whoever asked with it was told the id of that row."""
    ledger = evidence.holdings.ledger
    rows = Counter(body for _, body, _ in ledger)
    failed = [f"key {key} is {count} rows" for key, count in rows.items() if count > 1]
    ids = {body: comment for comment, body, _ in ledger}
    sent = {record["key"] for record in evidence.of_kind("sent")}
    failed += [f"row {ids[body]} is of nobody's key" for body in ids if body not in sent]
    failed += [
        f"key {record['key']} was answered with {record['id']} and is {ids[record['key']]}"
        for record in evidence.of_kind("acknowledged")
        if ids.get(record["key"], record["id"]) != record["id"]
    ]
    return [_judged("no key was applied twice", failed, counted=len(rows), least=evidence.writes_least)]


def one_writer_per_epoch(evidence: Evidence) -> list[Check]:
    """An epoch has one leader, whoever is asked, and what is written under it comes after its fence row."""
    holdings = evidence.holdings
    serving = [record for record in evidence.of_kind("status") if record["phase"] == "serving"]
    leaders: dict[int, set[str]] = {}
    for epoch, leader in [*((record["epoch"], record["leader"]) for record in serving), *holdings.fences]:
        leaders.setdefault(epoch, set()).add(leader)
    failed = [f"epoch {epoch} has {' and '.join(sorted(who))}" for epoch, who in leaders.items() if len(who) > 1]
    begun = {epoch for epoch, _ in holdings.fences}
    failed += [f"row {comment} is of epoch {epoch}" for comment, _, epoch in holdings.ledger if epoch not in begun]
    served = {record["epoch"] for record in serving}
    failed += [f"epoch {epoch} served without a fence row" for epoch in sorted(served - begun)]
    return [_judged("an epoch has one writer", failed, counted=len(served), least=_epochs_least(evidence))]


def _epochs_least(evidence: Evidence) -> int:
    """The epoch before the fault, and one of those that follow: another may end before anybody sees that it serves."""
    return 2 if evidence.drill.expect.failovers[0] > 0 else 1


def strong_reads_never_go_back(evidence: Evidence) -> list[Check]:
    """A strong read shows what had been acknowledged, and what a strong read had shown, before it began."""
    if not evidence.drill.load.readers:
        return []
    reads = _reads(evidence, "strong")
    known = sorted(
        (float(record["t"]), _position(record))
        for record in [*reads, *evidence.of_kind("acknowledged")]
        if record.get("position") is not None
    )
    ends = [end for end, _ in known]
    furthest = list(accumulate((position for _, position in known), max))
    failed: list[str] = []
    for record in reads:
        where = f"at {record['t']:.3f} s {record['region']}"
        if record.get("position") is None:
            failed.append(f"{where} showed no position")
            continue
        before = bisect_right(ends, float(record["sent"]))
        if before and furthest[before - 1] > _position(record):
            failed.append(f"{where} showed {_position(record)} after {furthest[before - 1]}")
    least = evidence.drill.expect.reads_min
    failed += _one_sided(evidence, reads, least)
    return [_judged("no strong read goes back", failed, counted=len(reads), least=2 * least)]


def _position(record: Record) -> Position:
    return decode_token(record["position"])[1]


def sessions_see_their_own_writes(evidence: Evidence) -> list[Check]:
    """A read that was granted `session` finds the comment that was written before it."""
    if not evidence.drill.load.readers:
        return []
    reads = _reads(evidence, "session")
    failed = [
        f"at {record['t']:.3f} s {record['region']} answered {record['status']} to its own writer"
        for record in reads
        if record["status"] != HTTPStatus.OK
    ]
    least = evidence.drill.expect.reads_min
    failed += _one_sided(evidence, reads, least)
    return [_judged("a session sees its own writes", failed, counted=len(reads), least=2 * least)]


def _reads(evidence: Evidence, served: str) -> list[Record]:
    return [record for record in evidence.of_kind("read") if record.get("served") == served]


def _one_sided(evidence: Evidence, facts: Sequence[Record], least: int) -> list[str]:
    """Facts are needed before the fault and after it: those of one side alone say nothing about the fault."""
    sides: tuple[Phase, ...] = ("before", "after")
    counts = {side: sum(evidence.during(side, record) for record in facts) for side in sides}
    return [
        f"too little evidence: {counts[side]} samples {PHASE_WORDS[side]}, at least {least} needed"
        for side in sides
        if counts[side] < least
    ]


def nobody_is_told_of_an_internal_error(evidence: Evidence) -> list[Check]:
    """Nothing that a drill does is answered with 500: what cannot be served is refused, with the reason."""
    answers = [record for record in evidence.records if record.get("status") is not None and record["kind"] != "status"]
    failed = [
        f"at {record['t']:.3f} s {record['region']} answered 500 to what was asked at {record['sent']:.3f} s"
        for record in answers
        if record["status"] == HTTPStatus.INTERNAL_SERVER_ERROR
    ]
    counted = len(answers) + len(evidence.of_kind("acknowledged"))
    return [_judged("nobody is told of an internal error", failed, counted=counted, least=evidence.writes_least)]


def unkeyed_writers_are_told_clearly(evidence: Evidence) -> list[Check]:
    """Without a key: 201, or one 503 with Retry-After; a broken connection only where something was hurt."""
    if not evidence.drill.load.unkeyed:
        return []
    attempts = evidence.writes(keyed=False)
    unclear = [
        record
        for record in attempts
        if record["kind"] != "acknowledged"
        and not (record.get("status") == HTTPStatus.SERVICE_UNAVAILABLE and record.get("retry_after"))
    ]
    bad = [record for record in unclear if not is_excused(evidence.hurt, record, unanswered=True)]
    name, least = "a writer without a key is told 503 and when to come again", evidence.drill.expect.unkeyed_min
    failed = [*_one_sided(evidence, attempts, least), *(_describe(record) for record in bad)]
    return [_judged(name, failed, counted=len(attempts), least=2 * least, excused=len(unclear) - len(bad))]


def keyed_writers_see_no_error(evidence: Evidence) -> list[Check]:
    """A keyed write at an edge that lives sees latency and never an error, but for a time that the drill names."""
    attempts = evidence.writes(keyed=True)
    errors = [record for record in attempts if record["kind"] != "acknowledged"]
    bad = [
        record
        for record in errors
        if not is_excused(evidence.hurt, record, unanswered=True)
        and not is_excused(evidence.refused, record, unanswered=False)
    ]
    name, excused = "keyed writers at living edges see no error", len(errors) - len(bad)
    failed = [_describe(record) for record in bad]
    return [_judged(name, failed, counted=len(attempts), least=evidence.writes_least, excused=excused)]


def _describe(record: Record) -> str:
    what = f"{record.get('status') or 'nothing'} {record['reason'][:160]}"
    return f"at {record['t']:.3f} s {record['region']} answered {what} to what was asked at {record['sent']:.3f} s"


def keyed_writes_are_taken_in_the_end(evidence: Evidence) -> list[Check]:
    """Whoever repeats a keyed write is told in the end that it is taken: no outage is open when the drill is over."""
    sent = {record["key"]: record for record in evidence.of_kind("sent") if record["keyed"]}
    taken = {record["key"] for record in evidence.of_kind("acknowledged")}
    failed = [
        f"key {key}, sent at {record['t']:.3f} s through {record['region']}, was never acknowledged"
        for key, record in sent.items()
        if key not in taken
    ]
    name = "every keyed write is taken in the end"
    return [_judged(name, failed, counted=len(sent), least=evidence.writes_least)]


def writes_are_taken_in_each_phase(evidence: Evidence) -> list[Check]:
    """As many writes are acknowledged before, during and after the fault as the drill declares, by region."""
    checks: list[Check] = []
    for phase in PHASES:
        declared = evidence.drill.expect.fewest.of(phase)
        taken = {role: evidence.acknowledged(phase, evidence.regions.roles.get(role, "")) for role in declared}
        failed = [
            f"{evidence.regions.roles.get(role, 'nobody')}, the {role}, acknowledged {taken[role]} writes, at least "
            f"{least} were expected"
            for role, least in declared.items()
            if taken[role] < least
        ]
        least = sum(declared.values())
        if least:
            name = f"edges take writes {PHASE_WORDS[phase]}"
            checks.append(_judged(name, failed, counted=sum(taken.values()), least=least))
    return checks


def the_method_is_carried_out(evidence: Evidence) -> list[Check]:
    """Each step was done: what a step did not do, nobody survived."""
    done = {record["step"] for record in evidence.of_kind("done")}
    failed = [
        f"step {number} ({step.do}) was not done"
        for number, step in enumerate(evidence.drill.method, 1)
        if number not in done
    ]
    return [_judged("every step is carried out", failed, counted=len(done), least=len(evidence.drill.method))]


def epochs_are_as_expected(evidence: Evidence) -> list[Check]:
    """As many epochs begin as the drill wants, and the right region leads at the end."""
    expect = evidence.drill.expect
    seen = [record for record in evidence.of_kind("status") if record["epoch"] is not None]
    failed: list[str] = []
    if seen:
        first, last = seen[0], seen[-1]
        begun, (fewest, most) = last["epoch"] - first["epoch"], expect.failovers
        if not fewest <= begun <= most:
            failed.append(f"{begun} epochs began, {fewest} to {most} were expected")
        if expect.leader_moves is not None and (first["leader"] != last["leader"]) != expect.leader_moves:
            failed.append(f"{first['leader']} led before and {last['leader']} leads now")
        if last["phase"] != "serving":
            failed.append(f"at the end the cell is {last['phase']}")
        if first["t"] > evidence.phases.get("during", (-1.0, -1.0))[0]:
            failed.append("nobody said who led before the fault")
    return [_judged("epochs are as expected", failed, counted=len(seen), least=_epochs_least(evidence))]


def stalls_are_short(evidence: Evidence) -> list[Check]:
    """No write waits longer than the drill allows for the next acknowledgement of anybody."""
    most = evidence.drill.expect.stall_s_max
    failed = [
        f"{stall.seconds:.2f} s without an acknowledgement from {stall.first:.3f} s on"
        for stall in evidence.stalls
        if stall.seconds > most
    ]
    taken = sum(record["kind"] == "acknowledged" for record in evidence.writes(keyed=True))
    return [_judged(f"writes stall for {most:g} s at most", failed, counted=taken, least=evidence.writes_least)]


def refusals_say_why(evidence: Evidence) -> list[Check]:
    """While writes are refused, the status says why and what would end it."""
    wanted = evidence.drill.expect.refusal
    if wanted is None:
        return []
    since, until = evidence.phases.get("during", (1.0, 0.0))
    told = [record for record in evidence.of_kind("status") if record.get("refusal") and since <= record["t"] <= until]
    said = sorted({str(record["refusal"]) for record in told})
    failed = [] if any(wanted in text for text in said) else [f"{wanted!r} was never said; said: {said}"]
    return [_judged("the status says why writes are refused", failed, counted=len(told), least=1)]


JUDGES: tuple[Judge, ...] = (
    the_method_is_carried_out,
    acknowledged_writes_are_in_the_ledger,
    acknowledged_writes_are_in_every_region,
    no_key_is_applied_twice,
    one_writer_per_epoch,
    strong_reads_never_go_back,
    sessions_see_their_own_writes,
    nobody_is_told_of_an_internal_error,
    unkeyed_writers_are_told_clearly,
    keyed_writers_see_no_error,
    keyed_writes_are_taken_in_the_end,
    writes_are_taken_in_each_phase,
    epochs_are_as_expected,
    stalls_are_short,
    refusals_say_why,
)
