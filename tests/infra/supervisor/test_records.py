"""Tests that the processes of a deployment are found by their identity, and that no others are ended."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.supervisor.layout import Layout, create_folders, open_layout
from infra.supervisor.records import (
    DEPLOYMENT_VARIABLE,
    ProcessRecord,
    birth_of,
    end_living,
    family,
    living,
    postmaster,
    read_records,
    record_of,
    write_records,
)

Sleeper = Callable[..., "subprocess.Popen[bytes]"]
REGIONS = ("us-east", "eu-west", "ap-south")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = open_layout(tmp_path / "data")
    create_folders(made, REGIONS)
    return made


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    """Start sleeping processes with a given deployment in their environment."""
    started: list[subprocess.Popen[bytes]] = []

    def start(deployment: str | None = None, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        environment = os.environ | ({DEPLOYMENT_VARIABLE: deployment} if deployment else {})
        process = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"],
            env=environment, stdout=subprocess.PIPE, cwd=cwd,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_an_orphan_of_this_deployment_is_ended_and_no_other(layout: Layout, sleeper: Sleeper) -> None:
    ours, theirs, strangers = sleeper("aaa"), sleeper("bbb"), sleeper()
    ended = end_living(layout, "aaa", REGIONS)
    assert ended == [f"process {ours.pid}"]
    assert ours.poll() is not None
    assert theirs.poll() is None
    assert strangers.poll() is None


def test_a_recorded_process_is_found_without_its_environment(layout: Layout, sleeper: Sleeper) -> None:
    process = sleeper()
    record = record_of("us-east/redis", process.pid)
    assert record is not None
    write_records(layout.records, [record])
    assert [name for name, _ in living(layout, "aaa", REGIONS)] == ["us-east/redis"]


def test_a_process_with_a_reused_pid_is_not_ended(layout: Layout, sleeper: Sleeper) -> None:
    process = sleeper()
    born = birth_of(os.getpid())
    assert born is not None
    assert born != birth_of(process.pid)
    write_records(layout.records, [ProcessRecord(name="us-east/redis", pid=process.pid, born=born)])
    assert end_living(layout, "aaa", REGIONS) == []
    assert process.poll() is None


def test_a_stale_postmaster_file_names_no_process(layout: Layout, sleeper: Sleeper) -> None:
    process = sleeper()
    pid_file = layout.postmaster_pid("us-east", "ledger")
    pid_file.parent.mkdir()
    pid_file.write_text(f"{process.pid}\n/data\n1767225600\n")
    assert postmaster(pid_file) is None, "the process lives, but it is not a postgres of this folder"


def test_a_process_in_the_folder_of_a_ledger_is_found_without_any_file(layout: Layout, sleeper: Sleeper) -> None:
    folder = layout.postmaster_pid("us-east", "ledger").parent
    folder.mkdir()
    process = sleeper(cwd=folder)
    assert end_living(layout, "aaa", REGIONS) == ["us-east/ledger"]
    assert process.poll() is not None


def test_an_incomplete_record_file_has_no_records(layout: Layout) -> None:
    layout.records.write_bytes(b'[{"name": "us-')
    assert read_records(layout.records) == []


def test_family_lists_each_living_descendant_once(sleeper: Sleeper) -> None:
    gone = sleeper()
    ended = psutil.Process(gone.pid)
    gone.kill()
    gone.wait()
    child = psutil.Process(sleeper().pid)
    members = family(psutil.Process(), ended)
    assert members[0].pid == os.getpid()
    assert child in members
    again = family(psutil.Process(), child, ended)
    assert [member.pid for member in again].count(child.pid) == 1
    assert family(child) == [child]
    assert ended not in members
    assert family(ended) == []


def test_family_finds_a_child_with_a_reused_pid(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    child = psutil.Process(sleeper().pid)
    assert child in family(psutil.Process())
    # psutil caches processes between two passes.
    known: dict[int, psutil.Process] = vars(psutil)["_pmap"]
    if child.pid in known:
        monkeypatch.setattr(known[child.pid], "_ident", (child.pid, 1.0))
    assert child in family(psutil.Process())
