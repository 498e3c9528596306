"""Tests the timeline of a drill's report by parsing its SVG."""

from dataclasses import replace
from xml.etree import ElementTree as ET

from infra.drills.report import PHASE_COLOURS, timeline
from infra.drills.runner import Outcome
from tests.infra.drills.test_judges import EMPTY, SOUND, Record, step


def drawn(*more: Record) -> ET.Element:
    records = sorted([*SOUND.records, *more], key=lambda record: record["t"])
    outcome = Outcome(evidence=replace(SOUND, records=records), seed=1, checks=[], seconds=4, trouble=None)
    return ET.fromstring(timeline(outcome))  # noqa: S314 - our own


def panel(svg: ET.Element, label: str) -> ET.Element:
    return next(one for one in svg.iter() if one.get("class") == "panel" and one.get("aria-label") == label)


def series(svg: ET.Element, label: str, drawn_as: str) -> dict[str, ET.Element]:
    return {one.get("aria-label", ""): one for one in panel(svg, label).iter() if one.get("class") == drawn_as}


def test_each_attempt_is_a_dot_in_the_series_of_its_outcome() -> None:
    dots = series(drawn(), "latency of writes, ms", "dots")
    counts = {kind: len([one for one in SOUND.records if one["kind"] == kind]) for kind in ("acknowledged", "refused")}
    assert {label: path.get("d", "").count("M") for label, path in dots.items()} == counts
    assert list(series(drawn(), "acknowledged writes/s", "steps")) == [""]


def test_the_suspicion_of_each_region_is_a_line() -> None:
    samples = [
        {"t": at, "kind": "phi", "phi": {"us": {"eu": at, "ap": 0.1}, "ap": {"eu": 0.2}}} for at in (0.5, 1.5, 2.5)
    ]
    lines = series(drawn(*samples), "phi", "line")
    assert list(lines) == ["ap", "eu"]
    assert [path.get("d", "").count("L") for path in lines.values()] == [2, 2]


def test_phases_and_steps_are_in_every_panel() -> None:
    svg = drawn(step(1.0, "kill", "us", process="ledger"))
    for label in ("acknowledged writes/s", "latency of writes, ms", "phi"):
        bands = [one.get("fill") for one in panel(svg, label).iter() if one.get("class") == "band"]
        assert bands == [PHASE_COLOURS[name] for name in ("serving", "recruiting", "serving")]
        assert [one.get("class") for one in panel(svg, label).iter()].count("mark") == 1
    assert "kill us/ledger" in list(svg.itertext())


def test_an_empty_drill_has_a_timeline() -> None:
    outcome = Outcome(evidence=EMPTY, seed=1, checks=[], seconds=0, trouble="no process started")
    assert panel(ET.fromstring(timeline(outcome)), "phi") is not None  # noqa: S314 - our own
