"""The entry that an agent stores for an epoch, and which agent stores it."""

from dataclasses import replace
from uuid import UUID

from regions.history import EpochHistory, parse_entry
from regions.identity import RegionName
from regions.leadership import Leadership

EAST, WEST = RegionName("us-east"), RegionName("eu-west")
RECRUITING = Leadership(
    epoch=2, leader=WEST, phase="recruiting", fence_id=None, reason="us-east is silent", since="then"
)  # fmt: skip
PROMOTING = replace(RECRUITING, phase="promoting", since="later")
SERVING = replace(PROMOTING, phase="serving", fence_id=UUID(int=2))


def test_the_leader_stores_reason_start_and_durations_once() -> None:
    history = EpochHistory(WEST)
    assert history.note_record(RECRUITING, now=10.0) == []
    history.note_step(2, "FreezeLedger", 31.0)
    history.note_step(1, "StopLedger", 99.0)
    assert history.note_record(PROMOTING, now=10.25) == []
    history.note_step(2, "PromoteLedger", 120.0)
    (entry,) = history.note_record(SERVING, now=11.5)
    assert entry.document() == {
        "epoch": 2,
        "leader": WEST,
        "reason": "us-east is silent",
        "began": "then",
        "served": True,
        "phases_ms": {"recruiting": 250.0, "promoting": 1250.0},
        "steps_ms": {"FreezeLedger": 31.0, "PromoteLedger": 120.0},
    }
    assert parse_entry(entry.to_json()) == entry.document()
    assert history.note_record(replace(SERVING, automatic=False), now=20.0) == []
    history.note_step(2, "SetQuorum", 5.0)
    assert "SetQuorum" not in entry.steps_ms


def test_other_regions_store_no_entry() -> None:
    history = EpochHistory(EAST)
    for now, record in enumerate((RECRUITING, PROMOTING, SERVING)):
        assert history.note_record(record, now=float(now)) == []


def test_the_candidate_of_an_epoch_that_never_served_stores_it() -> None:
    history = EpochHistory(WEST)
    history.note_record(PROMOTING, now=0.0)
    later = replace(RECRUITING, epoch=3, leader=EAST, reason="epoch 2 stays promoting")
    (entry,) = history.note_record(later, now=2.0)
    assert (entry.epoch, entry.served) == (2, False)
    assert history.note_record(RECRUITING, now=3.0) == [], "an older record must be ignored"


def test_an_epoch_begun_by_a_release_takes_its_start_time_from_its_first_record() -> None:
    history = EpochHistory(WEST)
    history.note_record(replace(PROMOTING, since=""), now=0.0)
    history.note_record(PROMOTING, now=0.2)
    (entry,) = history.note_record(SERVING, now=0.5)
    assert (entry.began, entry.phases_ms) == ("later", {"promoting": 500.0})


def test_an_agent_that_starts_after_an_epoch_serves_stores_no_entry() -> None:
    history = EpochHistory(WEST)
    assert history.note_record(SERVING, now=0.0) == []
    assert history.note_record(replace(RECRUITING, epoch=3, leader=EAST), now=1.0) == []


def test_an_invalid_entry_is_parsed_as_none() -> None:
    assert parse_entry(b"{") is None
    assert parse_entry(b"[]") is None
    assert parse_entry(b"{}") is None
