"""Measures the cost and the robustness of the region switcher, on a deployment at 80 ms (`make bench-switcher`).

* ``agent``: processor time of each region's agent on an idle system.
* ``hogs``: failovers in ten minutes of steady load while a process occupies each core; the aim is none.
* ``rejoin``: how long a killed member of one gigabyte takes to be rewound and follow again, and the effect on writes.

Prints one line of JSON per measurement; the exit code is 1 if an aim is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import psycopg
import uvloop

from infra.bench import rows
from infra.bench.deployment import RunningDeployment, running_deployment
from infra.drills.clients import LoadPlan, running_load
from infra.drills.drill import Load, Step
from infra.drills.journal import Journal
from infra.drills.target import Target

RTT_MS = 80.0
SETTLE_S = 15.0
AGENT_S = 60.0
HOGS_S = 600.0
STEADY_S = 15.0
RETURNED_S_MAX = 120.0
RETURNED_POLL_S = 0.5
ALONE_S = 0.3
BALLAST_MB = 1024
CHUNK_MB = 8
BALLAST = """
INSERT INTO palaver.ballast SELECT repeat(md5(random()::text), 256) FROM generate_series(1, %s)
"""
"""Inserts uncompressed rows of 8 kB, in transactions of `CHUNK_MB`. Change streams read their WAL and send nothing."""


def measure_agent(bench: RunningDeployment) -> dict[str, Any]:
    """Measure the share of one core that each agent uses while there are no writes and no reads."""
    time.sleep(SETTLE_S)
    agents = {one["region"]: psutil.Process(one["pids"]["region_agent"]) for one in bench.status()["regions"]}
    before = {region: _cpu_s(agent) for region, agent in agents.items()}
    began = time.monotonic()
    time.sleep(AGENT_S)
    took_s = time.monotonic() - began
    shares = {region: round((_cpu_s(agent) - before[region]) / took_s, 4) for region, agent in agents.items()}
    return rows.agent(shares, bench.status()["cells"][0]["leader"])


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@asynccontextmanager
async def loaded(bench: RunningDeployment, load: Load) -> AsyncGenerator[tuple[Target, Journal]]:
    """Run writers and readers on the deployment; yields the target, and the journal of requests and answers."""
    target = Target(bench.layout, bench.plan, bench.secrets)
    leader = bench.status()["cells"][0]["leader"]
    homes = [region for region in target.edges if region != leader]
    load_plan = LoadPlan(edges=target.edges, site=bench.create_site(), thread="bench-switcher", homes=homes)
    try:
        with tempfile.TemporaryDirectory(prefix="palaver-bench-") as folder:
            async with (
                Journal(Path(folder) / "journal.jsonl") as journal,
                running_load(load_plan, load, journal, seed=1),
            ):
                yield target, journal
    finally:
        await target.close()


async def measure_hogs(bench: RunningDeployment, seconds: float) -> dict[str, Any]:
    """Count the epochs that begin, and the outcomes of writes, while each core is occupied."""
    wanted = os.cpu_count() or 1
    with ExitStack() as stack:
        hogs = [stack.enter_context(_hog()) for _ in range(wanted)]
        async with loaded(bench, Load(writers=4, unkeyed=1, readers=2, pause_ms=100)) as (_, journal):
            await asyncio.sleep(seconds)
        attempts = [record for record in journal.records if record["kind"] in {"acknowledged", "refused", "unknown"}]
        running = sum(hog.poll() is None for hog in hogs)
    return rows.hogs(
        seconds=seconds,
        running=running,
        wanted=wanted,
        failovers=bench.status()["cells"][0]["epoch"] - 1,
        attempts=len(attempts),
        taken_s=_latencies_s(journal.records),
    )


def _hog() -> subprocess.Popen[bytes]:
    # The process ends with its standard input: when the context ends, or when this process ends or is killed.
    burn = "import select, sys\nwhile not select.select([sys.stdin], [], [], 0)[0]: sum(range(100_000))"
    return subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE)


async def measure_rejoin(bench: RunningDeployment, megabytes: int) -> dict[str, Any]:
    """Kill the leader's region under load, restart it, and measure the time until it follows."""
    leader = bench.status()["cells"][0]["leader"]
    _fill(bench, leader, megabytes)
    async with loaded(bench, Load(writers=16, unkeyed=0, readers=2, pause_ms=20)) as (target, journal):
        await asyncio.sleep(STEADY_S)
        # Writes that still reach the leader are on its disk only, so it returns with WAL that no other member has.
        others = [region for region in target.edges if region != leader]
        await target.change_network(Step(do="cut", direction="out"), [leader], others)
        await asyncio.sleep(ALONE_S)
        await target.kill(leader, None)
        async with asyncio.timeout(RETURNED_S_MAX):
            while (await target.status())["cells"][0]["leader"] == leader:  # noqa: ASYNC110 - nothing sets an event
                await asyncio.sleep(0.1)
        # Not earlier: the network would deliver data that is under way, also from a dead region.
        await target.heal()
        await asyncio.sleep(STEADY_S)
        back = journal.now
        await target.restart(leader)
        while not await _follows(target, leader):
            if journal.now - back > RETURNED_S_MAX:
                break
            # Rarely: each status takes processor time in every region, and the time before the restart had none.
            await asyncio.sleep(RETURNED_POLL_S)
        whole = journal.now
        await asyncio.sleep(1)
        records = list(journal.records)
    # Both are measured under the same leader and through the same edges.
    before = _latencies_s(records, back - STEADY_S / 2, back)
    meanwhile = _latencies_s(records, back, whole)
    how = await asyncio.to_thread(_rebuilt, bench, leader)
    return rows.rejoin(megabytes=megabytes, seconds=whole - back, how=how, before_s=before, meanwhile_s=meanwhile)


def _fill(bench: RunningDeployment, leader: str, megabytes: int) -> None:
    with _ledger(bench, leader) as connection:
        connection.execute("CREATE TABLE palaver.ballast (filling text STORAGE EXTERNAL)")
        for _ in range(math.ceil(megabytes / CHUNK_MB)):
            connection.execute(BALLAST, (CHUNK_MB * 128,))
    # As after five minutes: at its start a member replays WAL from its last checkpoint, whatever its size.
    for region in bench.plan.regions:
        with _ledger(bench, region) as connection:
            connection.execute("CHECKPOINT")


def _ledger(bench: RunningDeployment, region: str) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host="127.0.0.1", port=bench.plan.port(region, "ledger"), dbname="palaver", user="palaver",
        password=bench.secrets.ledger_superuser, autocommit=True,
    )  # fmt: skip


async def _follows(target: Target, region: str) -> bool:
    status = await target.status()
    own = next(one for one in status["regions"] if one["region"] == region)
    return bool(own["healthy"]) and own["role"] == "follower"


def _rebuilt(bench: RunningDeployment, region: str) -> list[str]:
    """Return the last message of the region's agent on how its member was rebuilt."""
    lines = bench.layout.log(region, "region_agent").read_text().splitlines()
    texts = [str(orjson.loads(line).get("msg", "")) for line in lines if line.startswith("{")]
    return [text for text in texts if "rewound" in text or "copied" in text][-1:]


def _latencies_s(records: Sequence[dict[str, Any]], since: float = 0.0, until: float = math.inf) -> list[float]:
    return [
        record["t"] - record["sent"]
        for record in records
        if record["kind"] == "acknowledged" and since <= record["sent"] < until
    ]


def main() -> int:
    """Run the selected measurements, each on a deployment of its own."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench.switcher", description=__doc__)
    parser.add_argument("what", nargs="*", choices=["agent", "hogs", "rejoin"], default=["agent", "hogs", "rejoin"])
    parser.add_argument("--seconds", type=float, default=HOGS_S, help="duration of the load with busy cores")
    parser.add_argument("--megabytes", type=int, default=BALLAST_MB, help="size of the member that returns")
    arguments = parser.parse_args()
    met = True
    for what in arguments.what:
        with running_deployment(rtt_ms=RTT_MS) as bench:
            match what:
                case "agent":
                    found = measure_agent(bench)
                case "hogs":
                    found = uvloop.run(measure_hogs(bench, arguments.seconds))
                case _:
                    found = uvloop.run(measure_rejoin(bench, arguments.megabytes))
        print(orjson.dumps({"what": what, **found}).decode(), flush=True)
        met = met and found["met"]
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
