"""The promise and the count of starts on an agent's disk."""

import json
from pathlib import Path

import pytest

from regions.failover.events import Promise
from regions.member.promise import NAME, STARTS, PromiseLost, load_promise, load_starts, store_promise, store_starts

PROMISE = Promise(epoch=4, lineage=3, floor=2, copying=1)


def test_a_stored_promise_is_loaded(tmp_path: Path) -> None:
    assert load_promise(tmp_path) is None
    store_promise(tmp_path, PROMISE)
    assert load_promise(tmp_path) == PROMISE
    store_promise(tmp_path, Promise(epoch=5))
    assert load_promise(tmp_path) == Promise(epoch=5)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"epoch": 1}', json.dumps({"epoch": -1, "lineage": 0, "floor": 0, "copying": 0})],
)
def test_an_unreadable_promise_file_is_an_error_and_not_an_empty_promise(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(PromiseLost, match="promise"):
        load_promise(tmp_path)


def test_a_stored_count_of_starts_is_loaded(tmp_path: Path) -> None:
    assert load_starts(tmp_path) is None
    store_starts(tmp_path, 7)
    assert load_starts(tmp_path) == 7
    (tmp_path / STARTS).write_text("many\n")
    with pytest.raises(PromiseLost):
        load_starts(tmp_path)
