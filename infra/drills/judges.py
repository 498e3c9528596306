"""Judges a drill: pure functions from its evidence to checks.

Decides what must hold in every drill: acknowledged writes are in the ledger and in every view, no key is applied twice,
an epoch has one writer, a strong read never goes back, a session read shows its own write, and a write without a key
gets 201 or a 503 with Retry-After. The drill's file adds its own expectations.

Each check needs a least number of facts, and fails with fewer. So a drill in which no client wrote, or no client read,
does not pass.
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
    """The result of one check.

    Attributes:
        name: What must hold, as a sentence.
        failed: What does not hold, one line each; empty if the check passed.
        counted: Number of facts that the check used.
        least: Number of facts that it needs.
        excused: Number of facts that would fail the check if the drill did not allow them.
    """

    name: str
    failed: tuple[str, ...]
    counted: int
    least: int
    excused: int = 0


Judge = Callable[[Evidence], list[Check]]


def judge(evidence: Evidence) -> list[Check]:
    """Return all checks of a drill, in the order of `JUDGES`."""
    return [check for one in JUDGES for check in one(evidence)]


def has_enough(evidence: Evidence, phase: Phase) -> bool:
    """Whether a phase has the facts that its checks need; on a slow machine this takes longer."""
    expect, load = evidence.drill.expect, evidence.drill.load
    roles = evidence.regions.roles
    if any(
        evidence.acknowledged(phase, roles.get(role, "")) < least for role, least in expect.fewest.of(phase).items()
    ):
        return False
    if phase == "during":
        # Reads and writes without a key have no least number in this phase.
        return True
    reads = [_reads(evidence, served) for served in ("strong", "session")] if load.readers else []
    unkeyed = [evidence.writes(keyed=False)] if load.unkeyed else []
    wanted = [*((facts, expect.reads_min) for facts in reads), *((facts, expect.unkeyed_min) for facts in unkeyed)]
    return all(sum(evidence.during(phase, one) for one in facts) >= least for facts, least in wanted)


def _judged(name: str, failed: Iterable[str], *, counted: int, least: int, excused: int = 0) -> Check:
    assert least > 0, "a check needs at least one fact"
    lines = [f"too little evidence: {counted} samples, at least {least} needed"] if counted < least else []
    return Check(name=name, failed=(*lines, *failed), counted=counted, least=least, excused=excused)


def acknowledged_writes_are_in_the_ledger(evidence: Evidence) -> list[Check]:
    """No acknowledged write is lost."""
    held = {comment for comment, _, _ in evidence.holdings.ledger}
    return [_all_there("every acknowledged write is in the ledger", evidence, held)]


def acknowledged_writes_are_in_every_region(evidence: Evidence) -> list[Check]:
    """Each view, and the pages of each edge, have every acknowledged write, and no row twice or not in the ledger."""
    checks: list[Check] = []
    holdings = evidence.holdings
    ledger = {comment for comment, _, _ in holdings.ledger}
    shown = [(f"the view of {region}", holdings.views.get(region, ())) for region in evidence.regions.every]
    shown += [(f"the pages of {region}", holdings.pages.get(region, ())) for region in evidence.regions.every]
    for where, ids in shown:
        checks.append(_all_there(f"every acknowledged write is in {where}", evidence, set(ids)))
        failed = [f"{comment} is in {where} and not in the ledger" for comment in sorted(set(ids) - ledger)]
        failed += [f"{comment} occurs {count} times in {where}" for comment, count in Counter(ids).items() if count > 1]
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
    """Each key has one row, and every acknowledgement of a write with that key has the id of the row."""
    ledger = evidence.holdings.ledger
    rows = Counter(body for _, body, _ in ledger)
    failed = [f"key {key} has {count} rows" for key, count in rows.items() if count > 1]
    ids = {body: comment for comment, body, _ in ledger}
    sent = {record["key"] for record in evidence.of_kind("sent")}
    failed += [f"row {ids[body]} has a key that no client sent" for body in ids if body not in sent]
    failed += [
        f"key {record['key']} was answered with {record['id']}; its row is {ids[record['key']]}"
        for record in evidence.of_kind("acknowledged")
        if ids.get(record["key"], record["id"]) != record["id"]
    ]
    return [_judged("no key was applied twice", failed, counted=len(rows), least=evidence.writes_least)]


def one_writer_per_epoch(evidence: Evidence) -> list[Check]:
    """An epoch has one leader, in the agents' status and the fence rows, and a fence row if it served or has rows."""
    holdings = evidence.holdings
    serving = [record for record in evidence.of_kind("status") if record["phase"] == "serving"]
    leaders: dict[int, set[str]] = {}
    for epoch, leader in [*((record["epoch"], record["leader"]) for record in serving), *holdings.fences]:
        leaders.setdefault(epoch, set()).add(leader)
    failed = [
        f"epoch {epoch} has the leaders {' and '.join(sorted(regions))}"
        for epoch, regions in leaders.items()
        if len(regions) > 1
    ]
    begun = {epoch for epoch, _ in holdings.fences}
    failed += [
        f"row {comment} is of epoch {epoch}, which has no fence row"
        for comment, _, epoch in holdings.ledger
        if epoch not in begun
    ]
    served = {record["epoch"] for record in serving}
    failed += [f"epoch {epoch} served without a fence row" for epoch in sorted(served - begun)]
    return [_judged("an epoch has one writer", failed, counted=len(served), least=_epochs_least(evidence))]


def _epochs_least(evidence: Evidence) -> int:
    """Return 2 if a failover is expected, else 1: a further epoch can end before a sample shows that it serves."""
    return 2 if evidence.drill.expect.failovers[0] > 0 else 1


def strong_reads_never_go_back(evidence: Evidence) -> list[Check]:
    """A strong read shows every write that was acknowledged, or shown by a strong read, before the read began."""
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
    """A read that was served as `session` finds the comment that was acknowledged before it."""
    if not evidence.drill.load.readers:
        return []
    reads = _reads(evidence, "session")
    failed = [
        f"at {record['t']:.3f} s {record['region']} answered {record['status']} to a session read of its own write"
        for record in reads
        if record["status"] != HTTPStatus.OK
    ]
    least = evidence.drill.expect.reads_min
    failed += _one_sided(evidence, reads, least)
    return [_judged("a session sees its own writes", failed, counted=len(reads), least=2 * least)]


def _reads(evidence: Evidence, served: str) -> list[Record]:
    return [record for record in evidence.of_kind("read") if record.get("served") == served]


def _one_sided(evidence: Evidence, facts: Sequence[Record], least: int) -> list[str]:
    """Return what is missing before or after the fault: facts of one side alone do not show its effect."""
    sides: tuple[Phase, ...] = ("before", "after")
    counts = {side: sum(evidence.during(side, record) for record in facts) for side in sides}
    return [
        f"too little evidence: {counts[side]} samples {PHASE_WORDS[side]}, at least {least} needed"
        for side in sides
        if counts[side] < least
    ]


def no_answer_is_an_internal_error(evidence: Evidence) -> list[Check]:
    """No answer is a 500: a request that cannot be served is refused with the reason."""
    answers = [record for record in evidence.records if record.get("status") is not None and record["kind"] != "status"]
    failed = [
        f"at {record['t']:.3f} s {record['region']} answered 500 to a request sent at {record['sent']:.3f} s"
        for record in answers
        if record["status"] == HTTPStatus.INTERNAL_SERVER_ERROR
    ]
    counted = len(answers) + len(evidence.of_kind("acknowledged"))
    return [_judged("no answer is a 500", failed, counted=counted, least=evidence.writes_least)]


def unkeyed_writes_get_a_clear_answer(evidence: Evidence) -> list[Check]:
    """A write without a key gets 201, or 503 with Retry-After; an edge that is down may also break the connection."""
    if not evidence.drill.load.unkeyed:
        return []
    attempts = evidence.writes(keyed=False)
    unclear = [
        record
        for record in attempts
        if record["kind"] != "acknowledged"
        and not (record.get("status") == HTTPStatus.SERVICE_UNAVAILABLE and record.get("retry_after"))
    ]
    bad = [record for record in unclear if not is_excused(evidence.edge_outages, record, unanswered=True)]
    name, least = "a write without a key gets 201, or 503 with Retry-After", evidence.drill.expect.unkeyed_min
    failed = [*_one_sided(evidence, attempts, least), *(_describe(record) for record in bad)]
    return [_judged(name, failed, counted=len(attempts), least=2 * least, excused=len(unclear) - len(bad))]


def keyed_writers_see_no_error(evidence: Evidence) -> list[Check]:
    """A running edge may delay keyed writes; it refuses them only in the windows that the drill declares."""
    attempts = evidence.writes(keyed=True)
    errors = [record for record in attempts if record["kind"] != "acknowledged"]
    bad = [
        record
        for record in errors
        if not is_excused(evidence.edge_outages, record, unanswered=True)
        and not is_excused(evidence.refused, record, unanswered=False)
    ]
    name, excused = "writers with a key get no error from a running edge", len(errors) - len(bad)
    failed = [_describe(record) for record in bad]
    return [_judged(name, failed, counted=len(attempts), least=evidence.writes_least, excused=excused)]


def _describe(record: Record) -> str:
    what = f"{record.get('status') or 'nothing'} ({record['reason'][:160]})"
    return f"at {record['t']:.3f} s {record['region']} answered {what} to a request sent at {record['sent']:.3f} s"


def keyed_writes_are_acknowledged_in_the_end(evidence: Evidence) -> list[Check]:
    """Every keyed write is acknowledged in the end: its client repeats it, and no write outage outlasts the drill."""
    sent = {record["key"]: record for record in evidence.of_kind("sent") if record["keyed"]}
    taken = {record["key"] for record in evidence.of_kind("acknowledged")}
    failed = [
        f"key {key}, sent at {record['t']:.3f} s through {record['region']}, was never acknowledged"
        for key, record in sent.items()
        if key not in taken
    ]
    name = "every keyed write is acknowledged in the end"
    return [_judged(name, failed, counted=len(sent), least=evidence.writes_least)]


def writes_are_acknowledged_in_each_phase(evidence: Evidence) -> list[Check]:
    """Each edge acknowledges the least number of writes that the drill declares for it, in each phase."""
    checks: list[Check] = []
    for phase in PHASES:
        declared = evidence.drill.expect.fewest.of(phase)
        taken = {role: evidence.acknowledged(phase, evidence.regions.roles.get(role, "")) for role in declared}
        failed = [
            f"{evidence.regions.roles.get(role, 'no region')}, the {role}, acknowledged {taken[role]} writes, at least "
            f"{least} were expected"
            for role, least in declared.items()
            if taken[role] < least
        ]
        least = sum(declared.values())
        if least:
            name = f"edges accept writes {PHASE_WORDS[phase]}"
            checks.append(_judged(name, failed, counted=sum(taken.values()), least=least))
    return checks


def the_method_is_executed(evidence: Evidence) -> list[Check]:
    """Every step was executed: the drill shows nothing about a step that was not."""
    done = {record["step"] for record in evidence.of_kind("done")}
    failed = [
        f"step {number} ({step.do}) was not executed"
        for number, step in enumerate(evidence.drill.method, 1)
        if number not in done
    ]
    return [_judged("every step is executed", failed, counted=len(done), least=len(evidence.drill.method))]


def epochs_are_as_expected(evidence: Evidence) -> list[Check]:
    """The number of new epochs and the leader at the end are as the drill expects, and the last epoch serves."""
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
            failed.append("no agent reported the leader before the fault")
    return [_judged("epochs are as expected", failed, counted=len(seen), least=_epochs_least(evidence))]


def write_outages_are_short(evidence: Evidence) -> list[Check]:
    """No write outage is longer than the drill allows."""
    most = evidence.drill.expect.stall_s_max
    failed = [
        f"{stall.seconds:.2f} s without an acknowledgement from {stall.first:.3f} s on"
        for stall in evidence.write_outages
        if stall.seconds > most
    ]
    taken = sum(record["kind"] == "acknowledged" for record in evidence.writes(keyed=True))
    return [_judged(f"no write outage is longer than {most:g} s", failed, counted=taken, least=evidence.writes_least)]


def refusals_say_why(evidence: Evidence) -> list[Check]:
    """While writes are refused, the status shows the reason that the drill expects."""
    wanted = evidence.drill.expect.refusal
    if wanted is None:
        return []
    since, until = evidence.phases.get("during", (1.0, 0.0))
    refusing = [
        record for record in evidence.of_kind("status") if record.get("refusal") and since <= record["t"] <= until
    ]
    shown = sorted({str(record["refusal"]) for record in refusing})
    failed = [] if any(wanted in text for text in shown) else [f"{wanted!r} was never shown, but {shown}"]
    return [_judged("the status shows why writes are refused", failed, counted=len(refusing), least=1)]


JUDGES: tuple[Judge, ...] = (
    the_method_is_executed,
    acknowledged_writes_are_in_the_ledger,
    acknowledged_writes_are_in_every_region,
    no_key_is_applied_twice,
    one_writer_per_epoch,
    strong_reads_never_go_back,
    sessions_see_their_own_writes,
    no_answer_is_an_internal_error,
    unkeyed_writes_get_a_clear_answer,
    keyed_writers_see_no_error,
    keyed_writes_are_acknowledged_in_the_end,
    writes_are_acknowledged_in_each_phase,
    epochs_are_as_expected,
    write_outages_are_short,
    refusals_say_why,
)
