"""Measures a deployment and prints the figures of the README, each with its limit if it has one (`make bench`).

Each pair is measured in turns (ours, limit, ours, limit …) and compared by medians, so that other work of the machine
affects both. Prints a table and writes `bench-results/bench.json`.
"""

from __future__ import annotations

import asyncio
import itertools
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import psutil
import uvloop

from infra.bench.bare_edge import bare_edge
from infra.bench.deployment import RunningDeployment, running_deployment, write_results
from infra.bench.load import BadAnswer, LoadResult, Session, get_request, post_request, run_load
from infra.bench.raw_app import free_port
from infra.bench.rows import MeasuredNothing, compared, freshness, limits_beside, plain, printed
from infra.bench.sessions import measure_sessions
from infra.bench.thread_pages import measure_thread_pages
from infra.printing import print_table
from infra.servers.resolver import resolve

CLIENTS = 32
ROUNDS = 3
SECONDS = 6.0
WARM_SECONDS = 2.0
THREAD_COMMENTS = 200
FRESHNESS_WRITES_PER_S = 200
FRESHNESS_S = 30.0
FRESHNESS_WARM_S = 5.0  # connections, plans and caches of nine processes and three views
FRESHNESS_SAMPLE_EVERY = 25
IDLE_S = 5.0
POLL_S = 0.001
VISIBLE_TIMEOUT_S = 10.0
PGBENCH_SQL = Path("services/ledger/sql/pgbench_post_comment.sql")
RESULTS = Path("bench-results/bench.json")


def post_source(site: str) -> Callable[[], bytes]:
    """Return a source of requests; each posts a new keyed comment to one of a hundred threads."""
    numbers = itertools.count()

    def make() -> bytes:
        number = next(numbers)
        body = orjson.dumps(
            {"thread": f"bench-{number % 100}", "body": f"A comment of usual length, number {number}, *really*.",
             "author": {"name": "Bench"}}
        )  # fmt: skip
        key = f"Idempotency-Key: {uuid.uuid4().hex}\r\n"
        return post_request(f"/v1/sites/{site}/comments", body, key)

    return make


def pgbench_per_second(bench: RunningDeployment, site: str, leader: str) -> float:
    """Return the transactions per second of pgbench: the same insert on the same ledger under the same quorum."""
    cell = bench.status()["cells"][0]
    command = [
        str(resolve("postgres").bin_dir / "pgbench"), "-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2",
        "-T", f"{SECONDS:.0f}", "-f", str(PGBENCH_SQL), "-D", f"site={site}", "-D", f"epoch={cell['epoch']}",
        "-h", "127.0.0.1", "-p", str(bench.plan.port(leader, "ledger")), "-U", "palaver_writer", "palaver",
    ]  # fmt: skip
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"PGPASSWORD": bench.secrets.ledger_writer}
    )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


async def measure_posts(bench: RunningDeployment, site: str) -> dict[str, Any]:
    """Measure POST through the leader region's edge, against pgbench."""
    leader = bench.status()["cells"][0]["leader"]
    edge = bench.plan.port(leader, "edge")
    source = post_source(site)
    await run_load(edge, source, connections=CLIENTS, seconds=WARM_SECONDS, expected=201)
    ours: list[LoadResult] = []
    limit: list[float] = []
    for _ in range(ROUNDS):
        ours.append(await run_load(edge, source, connections=CLIENTS, seconds=SECONDS, expected=201))
        await settle(bench)
        limit.append(await asyncio.to_thread(pgbench_per_second, bench, site, leader))
        await settle(bench)
    return compared("POST comment through the edge, 32 clients", ours, limit, "pgbench, same CALL, ANY 1", 0.20)


async def settle(bench: RunningDeployment) -> None:
    """Wait until every view has caught up, so that no measurement includes work of the one before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        regions = (await asyncio.to_thread(bench.status))["regions"]
        if regions and all(region["lag_ms"] == 0 for region in regions):
            return
        await asyncio.sleep(0.2)
    raise MeasuredNothing("the views did not catch up within 60 s; the next measurement would include their work")


async def fill_thread(edge: int, site: str, thread: str) -> None:
    """Post a thread of 200 comments, most of them replies."""
    chooser = random.Random(7)  # noqa: S311 - a script, not a secret
    ids: list[str] = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{edge}", timeout=15) as client:
        for number in range(THREAD_COMMENTS):
            parent = {"parent": chooser.choice(ids[-20:])} if ids and chooser.random() < 0.6 else {}  # noqa: PLR2004
            answer = await client.post(
                f"/v1/sites/{site}/comments",
                json={"thread": thread, "body": f"Comment {number}: some *words* of usual length.", **parent},
            )
            answer.raise_for_status()
            ids.append(answer.json()["id"])


async def measure_reads(bench: RunningDeployment, site: str) -> list[dict[str, Any]]:
    """Measure GET of a warm page through the edge, plain and gzipped, against a raw route that returns the same bytes.

    The rows have two more limits: an ASGI callable without any route, and that callable behind an Envoy that does
    nothing, which is the ceiling of any read through an edge.
    """
    region = bench.plan.regions[1]
    edge = bench.plan.port(region, "edge")
    await fill_thread(edge, site, "bench-read")
    await settle(bench)
    target = f"/v1/sites/{site}/comments?thread={quote('bench-read')}"
    return [await measure_read(edge, target, encoding) for encoding in ("identity", "gzip")]


async def measure_read(edge: int, target: str, encoding: str) -> dict[str, Any]:
    """Measure a page in one content encoding; return its row."""
    async with (
        httpx.AsyncClient() as client,
        client.stream("GET", f"http://127.0.0.1:{edge}{target}", headers={"accept-encoding": encoding}) as answer,
    ):
        body = b"".join([chunk async for chunk in answer.aiter_raw()])
    request = get_request(target, f"Accept-Encoding: {encoding}\r\n")
    async with limits(body) as limit_ports:
        ports = {"ours": edge, **limit_ports}
        runs: dict[str, list[LoadResult]] = {name: [] for name in ports}
        for seconds in (WARM_SECONDS, *[SECONDS] * ROUNDS):
            for name, port in ports.items():
                runs[name].append(await read_load(port, request, seconds))
    rates = {name: [run.per_second for run in some[1:]] for name, some in runs.items()}
    work = f"GET page of a 200-comment thread ({encoding}, {len(body):,} bytes) through the edge, warm"
    row = compared(work, runs["ours"][1:], rates["route"], "a raw route that returns the same bytes, no edge", 0.5)
    medians = {name: statistics.median(some) for name, some in rates.items()}
    edge_to_bare, ours_to_bare = (medians[name] / medians["bare"] for name in ("bare edge", "ours"))
    row["beside"] += (
        f"; to a callable without any route ({medians['bare']:,.0f}/s) ours has {ours_to_bare:.2f}, "
        f"and that callable behind an Envoy that does nothing {edge_to_bare:.2f}"
    )
    return row | {"page_bytes": len(body), "bare_edge_to_bare": edge_to_bare, "ours_to_bare": ours_to_bare}


@asynccontextmanager
async def limits(body: bytes) -> AsyncGenerator[dict[str, int]]:
    """Serve bytes by a raw route, a bare callable, and that callable behind a default Envoy; yields ports by name."""
    ports = {name: free_port() for name in ("route", "bare", "bare edge")}
    with tempfile.TemporaryDirectory(prefix="palaver-bench-") as folder:
        page, config = Path(folder) / "page", Path(folder) / "envoy.json"
        page.write_bytes(body)
        config.write_bytes(orjson.dumps(bare_edge(listen_port=ports["bare edge"], upstream_port=ports["bare"])))
        started = [
            await asyncio.create_subprocess_exec(*command)
            for command in (
                *(
                    (sys.executable, "-P", "-m", "infra.bench.raw_app", kind, str(ports[kind]), str(page))
                    for kind in ("route", "bare")
                ),
                (
                    str(resolve("envoy").path), "-c", str(config), "--concurrency", "1",
                    "--disable-hot-restart", "--log-level", "error",
                ),
            )
        ]  # fmt: skip
        try:
            for port in ports.values():
                await until_answers(port)
            yield ports
        finally:
            for process in started:
                process.terminate()
                await process.wait()


async def read_load(port: int, request: bytes, seconds: float) -> LoadResult:
    """Load a server with one request, sent repeatedly by 32 clients."""
    return await run_load(port, lambda: request, connections=CLIENTS, seconds=seconds, expected=200)


async def until_answers(port: int) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            async with httpx.AsyncClient() as client:
                await client.get(f"http://127.0.0.1:{port}/")
        except httpx.HTTPError:
            await asyncio.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing answers on port {port}")


async def measure_freshness(bench: RunningDeployment, site: str) -> dict[str, Any]:
    """Measure the time from a write's acknowledgement to its first read in another region, at 200 writes/s."""
    plan = bench.plan
    target = plan.port(plan.regions[1], "edge")
    samples_ms: list[float] = []
    make = post_source(site)
    writers: asyncio.Queue[Session] = asyncio.Queue()
    for _ in range(CLIENTS):
        writers.put_nowait(await Session.open(plan.port(plan.regions[0], "edge")))

    async def one(number: int) -> None:
        writer = await writers.get()
        status, body = await writer.request(make())
        acknowledged = time.perf_counter()
        writers.put_nowait(writer)
        if status != HTTPStatus.CREATED:
            raise BadAnswer(f"{status} {body!r}")
        if number % FRESHNESS_SAMPLE_EVERY == 0:
            comment = orjson.loads(body)["id"]
            samples_ms.append(await until_readable(target, f"/v1/sites/{site}/comments/{comment}", acknowledged))

    for seconds in (FRESHNESS_WARM_S, FRESHNESS_S):
        samples_ms.clear()
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(FRESHNESS_WRITES_PER_S * seconds)):
                due = started + number / FRESHNESS_WRITES_PER_S
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(number))
    while not writers.empty():
        writers.get_nowait().close()
    return freshness(samples_ms)


async def until_readable(port: int, target: str, since: float) -> float:
    """Request a comment until it is there; return the milliseconds since its acknowledgement."""
    request = get_request(target)
    reader = await Session.open(port)
    try:
        while time.perf_counter() - since < VISIBLE_TIMEOUT_S:
            status, _ = await reader.request(request)
            if status == HTTPStatus.OK:
                return (time.perf_counter() - since) * 1000
            await asyncio.sleep(POLL_S)
    finally:
        reader.close()
    raise TimeoutError(target)


async def measure() -> list[dict[str, Any]]:
    """Run all measurements on one deployment; return their rows."""
    with running_deployment() as bench:
        await settle(bench)
        await asyncio.sleep(IDLE_S)
        proportional, resident = bench.memory_mb()
        site = bench.create_site()
        return [
            plain("`palaver up` to all ready, warm install", bench.up_s, "s", 20),
            plain("resident memory of three regions, idle (shared pages once)", proportional, "MB", 2500)
            | {"plain_sum_mb": resident},
            await measure_freshness(bench, site),
            *await measure_reads(bench, site),
            *await measure_sessions(
                bench, f"/v1/sites/{site}/comments?thread={quote('bench-read')}", post_source(site)
            ),
            await measure_posts(bench, site),
            # Last, because it inserts rows into one view that no ledger has.
            *await measure_thread_pages(bench, site),
        ]


def main() -> int:
    """Measure, print and store; return exit code 1 if an aim is missed."""
    rows = uvloop.run(measure())
    print_table("", *printed(rows))
    for line in limits_beside(rows):
        print(line)
    machine = {"cores": psutil.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9, 1)}
    write_results(
        RESULTS,
        {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine | {"system": platform.platform(), "python": platform.python_version()},
            "rows": rows,
        },
    )
    print(f"written to {RESULTS}")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
