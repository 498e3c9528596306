"""Judges a drill by its journal and by what the ledger and the views hold afterwards. Pure functions.

What must hold in every drill: acknowledged writes are in the ledger and in every view, no key was applied twice, an
epoch has one writer, a strong read never goes back, a session sees its own writes, and whoever writes without a key is
told 503 with Retry-After or nothing worse. What a drill expects besides is in its file.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from infra.drills.drill import Expect
from regions.position import Position, decode_token

Record = Mapping[str, Any]

GAP_S_MIN = 0.25
"""A pause between acknowledgements that is a stall; at 16 writers and 80 ms they come every few milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was judged.

    Attributes:
        name: What must hold, as a sentence.
        failed: What does not, one line each; empty when it holds.
        counted: On how many facts the judgement rests.
    """

    name: str
    failed: tuple[str, ...]
    counted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What the databases hold of the drill's thread, read after everything had converged.

    Attributes:
        ledger: (id, body, epoch) of every row in the ledger.
        views: Ids by region.
        pages: Ids that readers are shown, by region: from page to page, with the consistency that nobody asks for.
        fences: (epoch, leader) of every fence row.
    """

    ledger: Sequence[tuple[str, str, int]]
    views: Mapping[str, Sequence[str]]
    pages: Mapping[str, Sequence[str]]
    fences: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A time without an acknowledgement.

    Attributes:
        first: When the first write was sent that suffered it, in seconds of the journal.
        end: When the next write was acknowledged.
    """

    first: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it was for the client that waited longest."""
        return self.end - self.first


def judge(records: Sequence[Record], holdings: Holdings, expect: Expect, *, end: float) -> list[Check]:
    """Return every check of a drill, in the order of importance."""
    return [
        acknowledged_writes_are_in_the_ledger(records, holdings),
        *acknowledged_writes_are_in_every_region(records, holdings),
        no_key_is_applied_twice(records, holdings),
        one_writer_per_epoch(records, holdings),
        strong_reads_never_go_back(records),
        sessions_see_their_own_writes(records),
        nobody_is_told_of_an_internal_error(records),
        unkeyed_writers_are_told_clearly(records, end=end),
        keyed_writers_see_no_error(records, expect, end=end),
        epochs_are_as_expected(records, expect),
        stalls_are_short(records, expect),
        *refusals_say_why(records, expect),
    ]


def acknowledged_writes_are_in_the_ledger(records: Sequence[Record], holdings: Holdings) -> Check:
    """Nothing that was acknowledged is lost."""
    held = {comment for comment, _, _ in holdings.ledger}
    return _all_there("every acknowledged write is in the ledger", records, held)


def acknowledged_writes_are_in_every_region(records: Sequence[Record], holdings: Holdings) -> list[Check]:
    """Every region shows everything that was acknowledged, and nothing that the ledger does not hold."""
    checks: list[Check] = []
    ledger = {comment for comment, _, _ in holdings.ledger}
    shown = [(f"the view of {region}", ids) for region, ids in holdings.views.items()]
    shown += [(f"the pages of {region}", ids) for region, ids in holdings.pages.items()]
    for where, ids in shown:
        checks.append(_all_there(f"every acknowledged write is in {where}", records, set(ids)))
        phantoms = sorted(set(ids) - ledger)
        failed = [f"{comment} is in {where} and not in the ledger" for comment in phantoms]
        doubled = [comment for comment, count in Counter(ids).items() if count > 1]
        failed += [f"{comment} is twice in {where}" for comment in doubled]
        checks.append(Check(name=f"nothing else is in {where}", failed=tuple(failed), counted=len(ids)))
    return checks


def _all_there(name: str, records: Sequence[Record], held: set[str]) -> Check:
    acknowledged = [record for record in records if record["kind"] == "acknowledged"]
    missing = [
        f"{record['id']}, acknowledged at {record['t']:.3f} s through {record['region']}, is missing"
        for record in acknowledged
        if record["id"] not in held
    ]
    return Check(name=name, failed=tuple(missing), counted=len(acknowledged))


def no_key_is_applied_twice(records: Sequence[Record], holdings: Holdings) -> Check:
    """A key is one row, and whoever asked with it was told the id of that row."""
    rows = Counter(body for _, body, _ in holdings.ledger)
    failed = [f"key {key} is {count} rows" for key, count in rows.items() if count > 1]
    ids = {body: comment for comment, body, _ in holdings.ledger}
    sent = {record["key"] for record in records if record["kind"] == "sent"}
    failed += [f"row {ids[body]} is of nobody's key" for body in ids if body not in sent]
    failed += [
        f"key {record['key']} was answered with {record['id']} and is {ids[record['key']]}"
        for record in records
        if record["kind"] == "acknowledged" and ids.get(record["key"], record["id"]) != record["id"]
    ]
    return Check(name="no key was applied twice", failed=tuple(failed), counted=len(rows))


def one_writer_per_epoch(records: Sequence[Record], holdings: Holdings) -> Check:
    """An epoch has one leader, whoever is asked, and every row is of an epoch that was begun."""
    leaders: dict[int, set[str]] = {}
    for record in records:
        if record["kind"] == "status" and record["phase"] == "serving":
            leaders.setdefault(record["epoch"], set()).add(record["leader"])
    for epoch, leader in holdings.fences:
        leaders.setdefault(epoch, set()).add(leader)
    failed = [f"epoch {epoch} has {' and '.join(sorted(who))}" for epoch, who in leaders.items() if len(who) > 1]
    begun = {epoch for epoch, _ in holdings.fences}
    failed += [f"row {comment} is of epoch {epoch}" for comment, _, epoch in holdings.ledger if epoch not in begun]
    return Check(name="an epoch has one writer", failed=tuple(failed), counted=len(leaders))


def strong_reads_never_go_back(records: Sequence[Record]) -> Check:
    """A strong read that began after another had ended shows at least as much."""
    reads = [record for record in records if record["kind"] == "read" and record.get("served") == "strong"]
    failed: list[str] = []
    ended: list[tuple[float, Position]] = []  # by the end, with the furthest position until then
    for record in sorted(reads, key=lambda one: float(one["sent"])):
        _, position = decode_token(record["position"])
        before = [known for end, known in ended if end <= record["sent"]]
        if before and max(before) > position:
            failed.append(f"at {record['t']:.3f} s {record['region']} showed {position} after {max(before)}")
        ended.append((float(record["t"]), position))
        del ended[: -2 * 64]  # no more reads than this are ever under way at once
    return Check(name="no strong read goes back", failed=tuple(failed), counted=len(reads))


def sessions_see_their_own_writes(records: Sequence[Record]) -> Check:
    """A read that was granted `session` finds the comment that was written before it."""
    reads = [record for record in records if record["kind"] == "read" and record.get("served") == "session"]
    failed = [
        f"at {record['t']:.3f} s {record['region']} answered {record['status']} to its own writer"
        for record in reads
        if record["status"] != HTTPStatus.OK
    ]
    return Check(name="a session sees its own writes", failed=tuple(failed), counted=len(reads))


def nobody_is_told_of_an_internal_error(records: Sequence[Record]) -> Check:
    """Nothing that a drill does is answered with 500: what cannot be served is refused, with the reason."""
    asked = [record for record in records if record.get("status") is not None and record["kind"] != "status"]
    failed = [
        f"at {record['t']:.3f} s {record['region']} answered 500 to what was asked at {record['sent']:.3f} s"
        for record in asked
        if record["status"] == HTTPStatus.INTERNAL_SERVER_ERROR
    ]
    return Check(name="nobody is told of an internal error", failed=tuple(failed), counted=len(asked))


def unkeyed_writers_are_told_clearly(records: Sequence[Record], *, end: float) -> Check:
    """Without a key: 201, or one 503 with Retry-After; a broken connection only where something was hurt."""
    hurt = hurt_spans(records, end=end)
    asked = [
        record for record in records if record["kind"] in ("acknowledged", "refused", "unknown") and not record["keyed"]
    ]
    failed = [
        f"at {record['t']:.3f} s {record['region']} answered {record.get('status')} {record['reason'][:100]}"
        for record in asked
        if record["kind"] != "acknowledged"
        and not (record.get("status") == HTTPStatus.SERVICE_UNAVAILABLE and record.get("retry_after"))
        and not _is_hurt(hurt, record)
    ]
    return Check(
        name="a writer without a key is told 503 and when to come again", failed=tuple(failed), counted=len(asked)
    )


def keyed_writers_see_no_error(records: Sequence[Record], expect: Expect, *, end: float) -> Check:
    """A keyed write at an edge that lives sees latency and never an error."""
    hurt = hurt_spans(records, end=end)
    asked = [
        record for record in records if record["kind"] in ("acknowledged", "refused", "unknown") and record["keyed"]
    ]
    errors = [record for record in asked if record["kind"] != "acknowledged" and not _is_hurt(hurt, record)]
    failed = [
        f"at {record['t']:.3f} s {record['region']} answered {record.get('status')} {record['reason'][:160]}"
        for record in errors[expect.refused_max :]
    ]
    return Check(name="keyed writers at living edges see no error", failed=tuple(failed), counted=len(asked))


def epochs_are_as_expected(records: Sequence[Record], expect: Expect) -> Check:
    """As many epochs begin as the drill wants, and the right region leads at the end."""
    seen = [record for record in records if record["kind"] == "status" and record["epoch"] is not None]
    if not seen:
        return Check(name="epochs are as expected", failed=("no status was seen",), counted=0)
    begun = seen[-1]["epoch"] - seen[0]["epoch"]
    fewest, most = expect.failovers
    failed: list[str] = []
    if not fewest <= begun <= most:
        failed.append(f"{begun} epochs began, {fewest} to {most} were expected")
    moved = seen[-1]["leader"] != seen[0]["leader"]
    if expect.leader_moves is not None and moved != expect.leader_moves:
        failed.append(f"{seen[0]['leader']} led before and {seen[-1]['leader']} leads now")
    if seen[-1]["phase"] != "serving":
        failed.append(f"at the end the cell is {seen[-1]['phase']}")
    return Check(name="epochs are as expected", failed=tuple(failed), counted=len(seen))


def stalls_of(records: Sequence[Record]) -> list[Stall]:
    """Return the stalls of keyed writers, from the first write that suffered each to the next acknowledgement."""
    acknowledged = sorted(
        (float(record["t"]), str(record["key"]))
        for record in records
        if record["kind"] == "acknowledged" and record["keyed"]
    )
    first_sent = _first_sent(record for record in records if record.get("keyed"))
    done = {key: at for at, key in acknowledged}
    stalls: list[Stall] = []
    for (before, _), (after, _) in itertools.pairwise(acknowledged):
        if after - before < GAP_S_MIN:
            continue
        # Every write that was under way when the last acknowledgement came, and those that were sent in the gap.
        suffered = [sent for key, sent in first_sent.items() if sent < after and done.get(key, after) >= after]
        stalls.append(Stall(first=min(suffered, default=before), end=after))
    return stalls


def slowest_write_s(records: Sequence[Record]) -> float | None:
    """Return the longest time from a write's first attempt to its acknowledgement, seconds; None without one."""
    first_sent = _first_sent(records)
    took = (float(record["t"]) - first_sent[record["key"]] for record in records if record["kind"] == "acknowledged")
    return max(took, default=None)


def _first_sent(records: Iterable[Record]) -> dict[str, float]:
    first_sent: dict[str, float] = {}
    for record in records:
        if record["kind"] == "sent":
            first_sent.setdefault(record["key"], float(record["t"]))
    return first_sent


def stalls_are_short(records: Sequence[Record], expect: Expect) -> Check:
    """No write waits longer than the drill allows for the next acknowledgement of anybody."""
    stalls = stalls_of(records)
    failed = [
        f"{stall.seconds:.2f} s without an acknowledgement from {stall.first:.3f} s on"
        for stall in stalls
        if stall.seconds > expect.stall_s_max
    ]
    name = f"writes stall for {expect.stall_s_max:g} s at most"
    return Check(name=name, failed=tuple(failed), counted=len(stalls))


def refusals_say_why(records: Sequence[Record], expect: Expect) -> list[Check]:
    """While writes are refused, the status says why and what would end it."""
    if expect.refusal is None:
        return []
    said = [str(record["refusal"]) for record in records if record["kind"] == "status" and record.get("refusal")]
    held = any(expect.refusal in text for text in said)
    failed = () if held else (f"{expect.refusal!r} was never said; said: {sorted(set(said))}",)
    return [Check(name="the status says why writes are refused", failed=failed, counted=len(said))]


def hurt_spans(records: Sequence[Record], *, end: float) -> list[tuple[str, float, float]]:
    """Return when the edge of which region could not be expected to answer: (region, from, to)."""
    hurt_since: dict[str, float] = {}
    spans: list[tuple[str, float, float]] = []
    for record in records:
        if record["kind"] != "step":
            continue
        for region in record.get("regions", ()):
            if record["do"] in ("kill", "pause") and record.get("process") in (None, "envoy"):
                hurt_since.setdefault(region, float(record["t"]))
            elif record["do"] in ("restarted", "resume") and region in hurt_since:
                spans.append((region, hurt_since.pop(region), float(record["t"])))
    return spans + [(region, since, end) for region, since in hurt_since.items()]


def _is_hurt(spans: Sequence[tuple[str, float, float]], record: Record) -> bool:
    """Whether a request was under way at an edge while that was hurt."""
    return any(
        region == record["region"] and since <= record["t"] and record["sent"] <= until
        for region, since, until in spans
    )
