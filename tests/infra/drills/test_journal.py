"""The journal is on disk before anybody goes on."""

import asyncio
from pathlib import Path

import orjson

from infra.drills.journal import Journal


async def test_what_was_noted_is_on_disk_when_noting_returns(tmp_path: Path) -> None:
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
