"""Writes the journal of a drill: a JSON line for each request, answer and step, fsynced before the next step uses it.

Decides the form of a record and when it is on disk. One fsync covers all records that wait for one (group commit).
What the records mean is in `evidence.py`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, Self

import orjson

Kind = Literal["sent", "acknowledged", "refused", "unknown", "read", "step", "status", "phi", "phase", "began", "done"]


class Journal:
    """An append-only file of JSON lines, with a copy in memory for the judges.

    Attributes:
        records: All records, in order; `t` is seconds since the journal began.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("ab")
        self._began = time.monotonic()
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._filled = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self._closing = False
        self.records: list[dict[str, Any]] = []

    @property
    def now(self) -> float:
        """Seconds since the journal began."""
        return time.monotonic() - self._began

    async def __aenter__(self) -> Self:
        """Start the task that writes."""
        self._flusher = asyncio.create_task(self._flush_until_closed(), name="journal")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write the records that wait, and close the file."""
        assert self._flusher is not None, "entered before"
        self._closing = True
        self._filled.set()
        # Not cancelled: a thread that is writing a batch cannot be stopped, and the batch's callers wait for it.
        await self._flusher
        self._file.close()

    async def note(self, kind: Kind, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - the fields of a record are JSON
        """Add a record; return it when it is on disk.

        Raises:
            OSError: The record cannot be written.
        """
        assert not self._closing, "a journal that is closed takes no record"
        record = {"t": round(self.now, 6), "kind": kind, **fields}
        self.records.append(record)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((orjson.dumps(record) + b"\n", written))
        self._filled.set()
        await written
        return record

    async def _flush_until_closed(self) -> None:
        while self._waiting or not self._closing:
            await self._filled.wait()
            self._filled.clear()
            batch, self._waiting = self._waiting, []
            if batch:
                await self._flush(batch)

    async def _flush(self, batch: Sequence[tuple[bytes, asyncio.Future[None]]]) -> None:
        failure: OSError | None = None
        try:
            await asyncio.to_thread(_write, self._file, [line for line, _ in batch])
        except OSError as error:
            failure = error
        for _, written in batch:
            if written.done():
                continue
            if failure is None:
                written.set_result(None)
            else:
                written.set_exception(failure)


def _write(file: IO[bytes], lines: list[bytes]) -> None:
    file.write(b"".join(lines))
    file.flush()
    os.fsync(file.fileno())
