"""Measures session reads beside eventual reads, while other threads receive writes.

There are two kinds of session. In the first, a read has the position of the last answer to any client, as it has
for clients that must not see time go backwards. In the second, a read has the position of the last acknowledged write
of any client. No session can require more: each of its reads waits until the view has that write.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from infra.bench.load import BadAnswer, LoadResult, Session, get_request, run_load
from infra.bench.rows import P99_SAMPLES_MIN, compared, enough

if TYPE_CHECKING:
    from infra.bench.deployment import RunningDeployment

CLIENTS: Final = 32
ROUNDS: Final = 3
SECONDS: Final = 4.0
WARM_SECONDS: Final = 2.0
WRITES_PER_S: Final = 40
WRITERS: Final = 8
"""Connections that share the writes: on a machine that is busy with reads, one gets twenty answers a second."""

WRITES_SHARE_MIN: Final = 0.9
"""With a smaller share of the intended writes, the figures would be those of another load."""

SHARE_MIN: Final = 0.5
POSITION: Final = b"palaver-position:"


class Newest:
    """The newest position, as a token, and the number of writes."""

    def __init__(self) -> None:
        self.token = b""
        self.writes = 0


async def write_steadily(port: int, make: Callable[[], bytes], newest: Newest) -> None:
    """Post one writer's share of the rate until cancelled."""
    writer = await Session.open(port)
    try:
        due = time.perf_counter()
        while True:
            status, head, body = await writer.request_with_head(make())
            if status != HTTPStatus.CREATED:
                raise BadAnswer(f"{status} {body!r}")
            newest.token, newest.writes = position_of(head), newest.writes + 1
            due += WRITERS / WRITES_PER_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
    finally:
        writer.close()


def position_of(head: bytes) -> bytes:
    """Return the position in the head of an answer."""
    lowered = head.lower()
    start = lowered.index(POSITION) + len(POSITION)
    return head[start : head.index(b"\r\n", start)].strip()


@asynccontextmanager
async def written_to(port: int, make: Callable[[], bytes]) -> AsyncGenerator[Newest]:
    """Write to other threads while the context lasts; yields when the first write is acknowledged."""
    newest = Newest()
    writing = [asyncio.ensure_future(write_steadily(port, make, newest)) for _ in range(WRITERS)]
    try:
        while not newest.token and not all(one.done() for one in writing):  # noqa: ASYNC110 - nothing sets an event
            await asyncio.sleep(0.01)
        yield newest
    finally:
        for one in writing:
            one.cancel()
        ended = await asyncio.gather(*writing, return_exceptions=True)
        if failed := next((one for one in ended if isinstance(one, Exception)), None):
            raise failed


async def measure_sessions(bench: RunningDeployment, target: str, make: Callable[[], bytes]) -> list[dict[str, Any]]:
    """Measure GET of a warm page: eventual, and the two kinds of session, in turns under the same writes."""
    leader, reader = bench.plan.regions[:2]
    port = bench.plan.port(reader, "edge")

    async def load(kind: str, newest: Newest, seconds: float) -> LoadResult:
        last = Newest()
        plain = get_request(target)

        def next_request() -> bytes:
            token = {"last answer": last.token, "newest write": newest.token}.get(kind)
            return get_request(target, f"Palaver-Position: {token.decode()}\r\n") if token else plain

        def on_head(head: bytes) -> None:
            last.token = position_of(head)

        return await run_load(port, next_request, connections=CLIENTS, seconds=seconds, expected=200, on_head=on_head)

    runs: dict[str, list[LoadResult]] = {"eventual": [], "last answer": [], "newest write": []}
    async with written_to(bench.plan.port(leader, "edge"), make) as newest:
        began, before = time.perf_counter(), newest.writes
        for seconds in (WARM_SECONDS, *[SECONDS] * ROUNDS):
            for kind, some in runs.items():
                some.append(await load(kind, newest, seconds))
        writes, seconds = newest.writes - before, time.perf_counter() - began
    # The first run of each kind is a warm-up.
    measured = {kind: some[1:] for kind, some in runs.items()}
    return [row_of(kind, measured, writes=writes, seconds=seconds) for kind in ("last answer", "newest write")]


def row_of(kind: str, runs: Mapping[str, Sequence[LoadResult]], *, writes: int, seconds: float) -> dict[str, Any]:
    """Return one row of the table.

    Raises:
        MeasuredNothing: Too few reads were answered, or too few writes were made at the same time.
    """
    work = f"GET page in a session, position of the {kind}, {WRITES_PER_S} writes/s to other threads"
    for run in runs.get("eventual", ()):
        enough(run.latencies_s, P99_SAMPLES_MIN, f"{work}: eventual")
    enough(range(writes), max(1, math.ceil(WRITES_SHARE_MIN * WRITES_PER_S * seconds)), f"{work}: writes")
    eventual = [run.per_second for run in runs.get("eventual", ())]
    row = compared(work, runs.get(kind, ()), eventual, "the same without a position", SHARE_MIN)
    return row | {"writes_per_s": round(writes / seconds, 1)}
