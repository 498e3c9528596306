from pathlib import Path

import orjson
import pytest

from infra.cli.logs import find_logs, merged, render
from infra.supervisor.errors import UnknownTarget
from infra.supervisor.layout import Layout, create_folders, open_layout
from infra.supervisor.plan import Plan

PLAN = Plan(deployment="d", regions=("us-east", "eu-west", "ap-south"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = open_layout(tmp_path / "data")
    create_folders(made, PLAN.regions)
    made.log("us-east", "write_api").write_text(
        '{"ts":"2026-01-01T00:00:01.000000Z","level":"info","msg":"first","region":"us-east"}\n'
        '{"ts":"2026-01-01T00:00:04.000000Z","level":"error","msg":"fourth","epoch":3}\n'
    )
    made.log("eu-west", "ledger").write_text(
        "2026-01-01 00:00:02.000 UTC [1] second\n\tDETAIL: that belongs to the second\n"
    )
    made.log("eu-west", "redis").write_text("77:M 01 Jan 2026 00:00:02.500 * between\n")
    made.log(None, "supervisor").write_text('{"ts":"2026-01-01T00:00:03.000000Z","level":"info","msg":"third"}\n')
    return made


def test_all_logs_are_merged_in_order_of_time(layout: Layout) -> None:
    lines = list(merged(find_logs(layout, PLAN, None, None), as_json=False))
    words = ("first", "second", "between", "third", "fourth")
    assert [next(word for word in words if word in line) for line in lines] == [
        "first", "second", "second", "between", "third", "fourth",
    ]  # fmt: skip


def test_logs_can_be_limited_to_a_region_and_a_process(layout: Layout) -> None:
    assert set(find_logs(layout, PLAN, "us-east", None)) == {"us-east/write_api"}
    assert set(find_logs(layout, PLAN, None, "supervisor")) == {"supervisor"}
    assert next(merged(find_logs(layout, PLAN, "eu-west", "ledger"), as_json=False)).endswith("second")


def test_as_json_every_line_is_an_object_with_region_and_process(layout: Layout) -> None:
    lines = [orjson.loads(line) for line in merged(find_logs(layout, PLAN, None, None), as_json=True)]
    sources = [(line.get("region"), line["process"]) for line in lines]
    assert sources == [
        ("us-east", "write_api"), ("eu-west", "ledger"), ("eu-west", "ledger"), ("eu-west", "redis"),
        (None, "supervisor"), ("us-east", "write_api"),
    ]  # fmt: skip
    assert lines[1] == {
        "region": "eu-west", "process": "ledger", "ts": "2026-01-01T00:00:02.000Z",
        "msg": "2026-01-01 00:00:02.000 UTC [1] second",
    }  # fmt: skip
    assert lines[2]["ts"] is None
    assert (lines[5]["msg"], lines[5]["epoch"]) == ("fourth", 3)


@pytest.mark.parametrize(("region", "process"), [("atlantis", None), ("us-east", "ledger"), (None, "nginx")])
def test_an_unknown_log_is_an_error_that_lists_the_known_ones(
    layout: Layout, region: str | None, process: str | None
) -> None:
    with pytest.raises(UnknownTarget, match="there are"):
        find_logs(layout, PLAN, region, process)


def test_a_json_line_is_printed_with_level_message_and_fields() -> None:
    line = '{"ts":"T","level":"warning","msg":"late","lag_ms":7,"region":"us-east","trace_id":null}'
    assert render("us-east/replicator", line) == "T us-east/replicator WARNING late lag_ms=7"


@pytest.mark.parametrize("line", ["plain text", "{broken", '{"no":"message"}', "[1]"])
def test_a_line_of_another_format_is_printed_unchanged(line: str) -> None:
    assert render("us-east/etcd", line) == f"us-east/etcd {line}"
