"""Files of an agent after a loss of power: the new value if its write had ended, otherwise the old or the new one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regions.failover.events import Promise
from regions.member.errors import MemberUnusable
from regions.member.promise import load_promise, load_starts, store_promise, store_starts
from regions.member.record import (
    MemberRecord,
    begin_building,
    building,
    end_building,
    flush,
    note_rewound,
    rewound_from,
    write_atomically,
    write_durably,
)
from regions.process_identity import ProcessIdentity
from tests.regions.power_loss import Files, power_loss

BEFORE, AFTER = Promise(epoch=4, lineage=3), Promise(epoch=5, lineage=4, floor=2, copying=1)
FIRST = MemberRecord(role="standby", epoch=1, process=ProcessIdentity(pid=7, started_ticks=8, boot_id="9"))
SECOND = MemberRecord(role="primary", epoch=2, process=None)


def found(possible_states: Files, folder: Path, load: Callable[[Path], object]) -> object:
    """Return what an agent that starts after the loss of power loads."""
    folder.mkdir()
    for name, content in possible_states.items():
        (folder / name).write_bytes(content)
    return load(folder)


def store_record(folder: Path, record: MemberRecord) -> None:
    record.store(folder)


def store_text(folder: Path, text: str) -> None:
    write_durably(folder / "file", text)


def load_text(folder: Path) -> str:
    return (folder / "file").read_text()


@pytest.mark.parametrize(
    ("store", "load", "values"),
    [
        (store_promise, load_promise, (BEFORE, AFTER)),
        (store_starts, load_starts, (6, 7)),
        (store_record, MemberRecord.load, (FIRST, SECOND)),
        (note_rewound, rewound_from, ("127.0.0.1:1", "127.0.0.1:2")),
        (store_text, load_text, ("one", "a longer one")),
    ],
)
def test_a_loss_of_power_leaves_the_old_or_the_new_value_during_a_write_and_the_new_one_after_it(
    tmp_path: Path,
    store: Callable[[Path, Any], None],
    load: Callable[[Path], object],
    values: tuple[object, object],
) -> None:
    before, after = values
    (disk := tmp_path / "disk").mkdir()
    store(disk, before)
    with power_loss(disk) as power:
        store(disk, after)
        seen = [
            found(possible_states, tmp_path / f"{number}", load) for number, possible_states in enumerate(power.states)
        ]
        kept = [
            found(possible_states, tmp_path / f"kept-{number}", load)
            for number, possible_states in enumerate(power.possible_states())
        ]
    assert seen
    assert all(one in (before, after) for one in seen)
    assert kept == [after, after]


def test_the_first_promise_survives_a_loss_of_power(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    with power_loss(disk) as power:
        store_promise(disk, AFTER)
        kept = [
            found(possible_states, tmp_path / f"{number}", load_promise)
            for number, possible_states in enumerate(power.possible_states())
        ]
    assert kept == [AFTER, AFTER]


def test_an_atomically_written_file_is_visible_at_once_and_durable_after_a_flush(
    tmp_path: Path,
) -> None:
    (disk := tmp_path / "disk").mkdir()
    write_durably(disk / "file", "old")
    with power_loss(disk) as power:
        write_atomically(disk / "file", "new")
        assert (disk / "file").read_bytes() == b"new"
        flush(disk / "file")
        assert power.possible_states() == [{"file": b"new"}] * 2


def test_a_build_is_durably_marked_as_unfinished_until_it_ends(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    with power_loss(disk) as power:
        begin_building(disk, "base backup")
        assert [set(possible_states) for possible_states in power.possible_states()] == [{"building"}] * 2
        end_building(disk)
        assert power.possible_states() == [{}, {}]
    assert not building(disk)


def test_an_invalid_member_record_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "member.json").write_text('{"role": "primary"}')
    with pytest.raises(MemberUnusable, match=r"member\.json cannot be read"):
        MemberRecord.load(tmp_path)
