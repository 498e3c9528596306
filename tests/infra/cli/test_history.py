"""Tests what `palaver history` prints of epochs and orders, and the journal of orders."""

import re
from pathlib import Path
from typing import Any

import pytest

from infra.supervisor import order_journal
from infra.supervisor.order_journal import ORDERS_MAX, note_order, read_orders
from tests.infra.cli.control import Control, Palaver


def epoch(number: int, began: str, **changes: Any) -> dict[str, Any]:
    return {
        "epoch": number, "leader": "eu-west", "began": began, "served": True,
        "reason": "us-east is silent: " + "suspected by eu-west and ap-south, " * 4,
        "phases_ms": {"recruiting": 412.3, "promoting": 288.4},
        "steps_ms": {f"Step{n}": 10.0 * n for n in range(12)}, **changes,
    }  # fmt: skip


def order(kind: str, region: str | None, at: str, refused: str | None = None) -> dict[str, Any]:
    return {"order": kind, "region": region, "at": at, "by": "ann: a new disk", "refused": refused}


def test_epochs_and_orders_are_printed_in_order_of_time_within_80_columns(palaver: Palaver, control: Control) -> None:
    control.documents["/history"] = {
        "epochs": [epoch(3, "2026-11-30T10:00:02.5Z"), epoch(4, "2026-11-30T10:00:09Z", served=False), epoch(5, "")],
        "orders": [
            order("pause", None, "2026-11-30T10:00:01.000001Z"),
            order("drain", "us-east", "2026-11-30T10:00:03Z"),
            order("switch", "ap-south", "2026-11-30T10:00:04Z"),
            order("switch", "ap-south", "2026-11-30T10:00:05Z", "ap-south is silent"),
        ],
    }
    code, out, err = palaver("history")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line for line in lines if not line.startswith(" ")]
    assert [head[21:] for head in heads] == [
        "epoch 5: eu-west, served after 0.70 s",
        "order: failover pause",
        "epoch 3: eu-west, served after 0.70 s",
        "order: drain us-east",
        "order: switch ap-south (refused)",
        "epoch 4: eu-west, never served",
    ]
    assert heads[0].startswith("time unknown")
    assert all(re.match(r"2026-1[12]-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}  ", head) for head in heads[1:])
    assert "by ann: a new disk" in out
    assert "refused: ap-south is silent" in out


def test_the_journal_is_bounded_and_skips_an_incomplete_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "orders.jsonl"
    assert read_orders(path) == []
    note_order(path, kind="pause", region=None, by="ann: x", refused=None)
    with path.open("ab") as file:
        file.write(b'{"at": "2026\n')
    note_order(path, kind="drain", region="us-east", by="ann: y", refused="no")
    assert [(one["order"], one["region"], one["refused"]) for one in read_orders(path)] == [
        ("pause", None, None),
        ("drain", "us-east", "no"),
    ]
    monkeypatch.setattr(order_journal, "BYTES_MAX", 100)
    path.write_bytes(path.read_bytes() * ORDERS_MAX)
    note_order(path, kind="resume", region=None, by="ann: z", refused=None)
    assert len(path.read_bytes().splitlines()) == ORDERS_MAX + 1
    assert read_orders(path)[-1]["order"] == "resume"


def test_an_order_after_an_incomplete_line_is_kept(tmp_path: Path) -> None:
    journal = tmp_path / "orders.jsonl"
    journal.write_bytes(b'{"at": "2026-11-30T1')
    note_order(journal, kind="pause", region=None, by="me", refused=None)
    assert [one["order"] for one in read_orders(journal)] == ["pause"]


def test_a_journal_that_cannot_be_written_does_not_fail_the_order(tmp_path: Path) -> None:
    note_order(tmp_path / "no-folder" / "orders.jsonl", kind="pause", region=None, by="ann: x", refused=None)
