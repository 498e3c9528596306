"""Measures a cold page of a thread, by the size of the thread.

Decides what cold means: no page cache of Palaver has the page, and PostgreSQL's shared buffers are empty because the
server was restarted. The kernel's page cache is left alone. The comments are inserted into the view of one region, in
random order, so that each comment of a page is in a different block, as on a busy site.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson
import psycopg

from infra.bench.load import BadAnswer, Session, get_request
from infra.bench.rows import MeasuredNothing, enough
from infra.supervisor.control_client import ControlClient

if TYPE_CHECKING:
    from infra.bench.deployment import RunningDeployment

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
ROUNDS: Final = 7
GROWTH_MAX: Final = 1.5
BACK_S_MAX: Final = 60.0
WARM_REQUESTS: Final = 20

INSERT_THREADS: Final = """
INSERT INTO threads (id, site_id, key, state, version, count)
SELECT md5(key)::uuid, %(site)s, key, 'open', 1, size FROM unnest(%(keys)s::text[], %(sizes)s::int[]) AS t (key, size)
"""
INDEXES: Final = """
SELECT
    CASE WHEN i.indisprimary THEN format('ALTER TABLE comments DROP CONSTRAINT %I', c.conname)
        ELSE format('DROP INDEX %s', i.indexrelid::regclass) END,
    CASE WHEN i.indisprimary
        THEN format('ALTER TABLE comments ADD CONSTRAINT %I %s', c.conname, pg_get_constraintdef(c.oid))
        ELSE pg_get_indexdef(i.indexrelid) END
FROM pg_index AS i
LEFT JOIN pg_constraint AS c ON c.conindid = i.indexrelid
WHERE i.indrelid = 'comments'::regclass
"""
INSERT_COMMENTS: Final = """
INSERT INTO comments (id, site_id, thread_id, depth, author_name, body, state, version, created_at)
SELECT
    gen_random_uuid(), %(site)s, t.thread, 0, 'Bench',
    format('A comment of usual length, number %%s, *really*.', n), 'approved', 1,
    timestamptz '2026-01-01' + n * interval '1 second'
FROM (SELECT md5(key)::uuid, size FROM unnest(%(keys)s::text[], %(sizes)s::int[]) AS u (key, size)) AS t (thread, size)
CROSS JOIN LATERAL generate_series(1, t.size) AS n
ORDER BY random()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cold:
    """One kind of page of one thread."""

    kind: str
    size: int
    target: str


def key_of(size: int) -> str:
    """Return the key of the thread with this many comments, all of the first level."""
    return f"bench-roots-{size}"


def fill_view(url: str, site: str) -> None:
    """Insert the threads into a view, and write everything to disk so that a restart replays nothing."""
    given = {"site": site, "keys": [key_of(size) for size in SIZES], "sizes": list(SIZES)}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(INSERT_THREADS, given)
        # Inserting a million rows in random order is much faster without indexes and with a sort in memory.
        connection.execute("SET work_mem = '400MB'")
        connection.execute("SET maintenance_work_mem = '400MB'")
        indexes = connection.execute(INDEXES).fetchall()
        for drop, _ in indexes:
            connection.execute(drop)
        connection.execute(INSERT_COMMENTS, given)
        for _, make in indexes:
            connection.execute(make)
        connection.execute("VACUUM comments")
        connection.execute("CHECKPOINT")


async def measure_thread_pages(bench: RunningDeployment, site: str) -> list[dict[str, Any]]:
    """Measure cold pages of threads of a thousand to a million comments; return one row per kind of page."""
    region = bench.plan.regions[1]
    view = f"127.0.0.1:{bench.plan.port(region, 'view')}/palaver"
    await asyncio.to_thread(fill_view, f"postgresql://palaver:{bench.secrets.view_superuser}@{view}", site)
    # Not through the edge: it would also ask another region, whose view has none of these threads.
    port = bench.plan.port(region, "read_api")
    targets = [cold for size in SIZES for cold in await cold_targets(port, site, size)]
    taken_ms: dict[tuple[str, int], list[float]] = {(cold.kind, cold.size): [] for cold in targets}
    for number in range(ROUNDS):
        await restart_view(bench, region)
        reader = await warm(port, site)
        # The first request reads the root of the index, so each page is first in turn.
        start = number * len(targets) // ROUNDS
        for cold in targets[start:] + targets[:start]:
            # The depth does not change the work for these threads, but each depth is a page that no cache has.
            request = get_request(f"{cold.target}&depth={number + 2}")
            began = time.perf_counter()
            status, body = await reader.request(request)
            taken_ms[cold.kind, cold.size].append((time.perf_counter() - began) * 1000)
            if status != HTTPStatus.OK:
                raise BadAnswer(f"{status} {body[:200]!r}")
            if not orjson.loads(body)["comments"]:
                raise MeasuredNothing(f"{cold.kind}, {cold.size:,} comments: an empty page")
        reader.close()
    kinds = list(dict.fromkeys(cold.kind for cold in targets))
    return [row_of(kind, {size: taken_ms[kind, size] for size in SIZES}) for kind in kinds]


async def cold_targets(port: int, site: str, size: int) -> list[Cold]:
    """Return the pages of the thread of one size, without a depth."""
    target = f"/v1/sites/{site}/comments?thread={quote(key_of(size))}"
    reader = await Session.open(port)
    try:
        first = orjson.loads((await reader.request(get_request(f"{target}&depth=1")))[1])
    finally:
        reader.close()
    return [
        Cold(kind="first page, newest first", size=size, target=target),
        Cold(kind="first page, oldest first", size=size, target=f"{target}&sort=oldest"),
        Cold(kind="second page, newest first", size=size, target=f"{target}&cursor={quote(first['next'])}"),
    ]


async def restart_view(bench: RunningDeployment, region: str) -> None:
    """Kill the view's PostgreSQL; its supervisor starts it again."""

    def kill() -> None:
        with ControlClient(bench.layout) as control:
            control.post("/fault/kill", region=region, process="view")

    await asyncio.to_thread(kill)


async def warm(port: int, site: str) -> Session:
    """Wait until the view answers and its connections have their catalogs and plans; return the session."""
    reader = await Session.open(port)
    deadline = time.monotonic() + BACK_S_MAX
    answered = 0
    while answered < WARM_REQUESTS:
        if time.monotonic() > deadline:
            raise TimeoutError("the view does not answer after its restart")
        status, _ = await reader.request(
            get_request(f"/v1/sites/{site}/comments?thread=bench-warm-{time.monotonic_ns()}")
        )
        answered += status == HTTPStatus.OK
        if status != HTTPStatus.OK:
            await asyncio.sleep(0.1)
    return reader


def row_of(kind: str, taken_ms: dict[int, list[float]]) -> dict[str, Any]:
    """Return one row of the table: the median of each size, and the ratio of the largest to the smallest."""
    for size in SIZES:
        enough(taken_ms.get(size, []), ROUNDS, f"{kind}, {size:,} comments")
    medians = {size: statistics.median(some) for size, some in taken_ms.items()}
    growth = medians[SIZES[-1]] / medians[SIZES[0]]
    return {
        "work": f"cold {kind}, thread of {SIZES[-1]:,} comments",
        "ours": " → ".join(f"{value:.1f} ms" for value in medians.values()),
        "beside": f"the same of {SIZES[0]:,}; between them of " + ", ".join(f"{size:,}" for size in SIZES[1:-1]),
        "ratio": round(growth, 2),
        "aim": f"< {GROWTH_MAX}",
        "met": growth < GROWTH_MAX,
        "taken_ms": {str(size): [round(value, 2) for value in some] for size, some in taken_ms.items()},
    }  # fmt: skip
