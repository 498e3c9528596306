"""Tests of the drill journal: a record is on disk when `note` returns, also while the journal closes."""

import asyncio
import os
import threading
from pathlib import Path

import orjson
import pytest

from infra.drills.journal import Journal

WAIT_S = 10.0


async def test_a_record_is_on_disk_when_note_returns(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    async with Journal(path) as journal:
        await asyncio.gather(*(journal.note("sent", key=str(number)) for number in range(50)))
        lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        assert [line["key"] for line in lines] == [str(number) for number in range(50)]
        assert lines == journal.records
        late = asyncio.ensure_future(journal.note("sent", key="late"))
        await asyncio.sleep(0)
    assert b"late" in path.read_bytes()
    late.cancel()


async def test_closing_waits_for_a_running_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, busy, overlaps = os.fsync, threading.Lock(), list[int]()
    entered, released = threading.Event(), threading.Event()

    def slow_fsync(descriptor: int) -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(descriptor)
            return
        try:
            entered.set()
            assert released.wait(WAIT_S)
            fsync(descriptor)
        finally:
            busy.release()

    monkeypatch.setattr(os, "fsync", slow_fsync)
    path = tmp_path / "journal.jsonl"
    journal = await Journal(path).__aenter__()
    first = asyncio.create_task(journal.note("sent", key="first"))
    assert await asyncio.to_thread(entered.wait, WAIT_S)
    second = asyncio.create_task(journal.note("sent", key="second"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(journal.__aexit__())
    for _ in range(10):
        await asyncio.sleep(0)
    closed_early = closing.done()
    released.set()
    async with asyncio.timeout(WAIT_S):
        await closing
    assert not overlaps, "two threads wrote at once"
    assert not closed_early
    async with asyncio.timeout(WAIT_S):
        noted = [await first, await second]
    assert [orjson.loads(line) for line in path.read_bytes().splitlines()] == noted


async def test_note_raises_the_error_of_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    async with Journal(tmp_path / "journal.jsonl") as journal, asyncio.timeout(WAIT_S):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_disk)
            with pytest.raises(OSError, match="no space"):
                await journal.note("sent", key="lost")
        await journal.note("sent", key="kept")
