"""The journal of a drill: what clients sent and what they were told, on disk before the next step depends on it.

Decides the form of a record and that what is noted is fsynced. One fsync serves everybody who waits for one.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import IO, Any, Literal, Self

import orjson

Kind = Literal["sent", "acknowledged", "refused", "unknown", "read", "step", "status", "phi", "phase", "began", "done"]


class Journal:
    """An append-only file of JSON lines, with a copy in memory for the judges.

    Attributes:
        records: Everything that was noted, in order; `t` is seconds since the journal began.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("ab")
        self._began = time.monotonic()
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._filled = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self.records: list[dict[str, Any]] = []

    @property
    def now(self) -> float:
        """Seconds since the journal began."""
        return time.monotonic() - self._began

    async def __aenter__(self) -> Self:
        """Begin to write."""
        self._flusher = asyncio.create_task(self._flush_forever(), name="journal")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what waits, and close."""
        assert self._flusher is not None, "entered before"
        self._flusher.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)
        if self._waiting:
            _write(self._file, [line for line, _ in self._waiting])
        self._file.close()

    async def note(self, kind: Kind, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - what a record says is JSON
        """Note something and return when it is on disk."""
        record = {"t": round(self.now, 6), "kind": kind, **fields}
        self.records.append(record)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((orjson.dumps(record) + b"\n", written))
        self._filled.set()
        await written
        return record

    async def _flush_forever(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            waiting, self._waiting = self._waiting, []
            await asyncio.to_thread(_write, self._file, [line for line, _ in waiting])
            for _, written in waiting:
                if not written.done():
                    written.set_result(None)


def _write(file: IO[bytes], lines: list[bytes]) -> None:
    file.write(b"".join(lines))
    file.flush()
    os.fsync(file.fileno())
