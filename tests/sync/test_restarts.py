"""Stops and restarts parts of the pipeline at random moments, as kill -9 does; no change is lost or applied twice."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from services.telemetry.http_server import bind, serve_http
from sync.channel.direct.server import ChangeServer
from tests.sync.rig import Rig, Writer, differences, writing

pytestmark = pytest.mark.integration

PAUSE_S_MAX = 0.06


class RestartablePart:
    """A task that a test cancels and starts again."""

    def __init__(self, group: asyncio.TaskGroup, begin: Callable[[], Awaitable[None]]) -> None:
        self._group = group
        self._begin = begin
        self.task = self._start()

    def _start(self) -> asyncio.Task[None]:
        async def work() -> None:
            await self._begin()

        return self._group.create_task(work())

    async def restart(self) -> None:
        await self.end()
        self.task = self._start()

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


def end_backends(rig: Rig, kind: str) -> None:
    """Terminate connections at the server, as a network failure does."""
    if kind == "walsender":
        rig.sql(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE database = current_database() AND active_pid IS NOT NULL"
        )
    else:
        rig.view_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'palaver-apply' AND datname = current_database()"
        )


async def write(writer: Writer, draw: random.Random, stop: asyncio.Event) -> None:
    """Post, reply, moderate, delete and erase, in transactions of several sizes."""
    threads = [await writer.create_thread(f"/{number}") for number in range(3)]
    posted = [await writer.post(thread) for thread in threads]
    connection = writer.connection
    while not stop.is_set():
        chosen = draw.choice(posted)
        async with connection.transaction():
            match draw.randrange(6):
                case 0 | 1 | 2:
                    thread = await connection.fetchval("SELECT thread_id FROM palaver.comments WHERE id = $1", chosen)
                    body = draw.choice(["short", "ünï😀", "x" * 3000])
                    posted.append(await writer.post(thread, body, parent=chosen))
                case 3:
                    await connection.execute(
                        "UPDATE palaver.comments SET state = $2, version = version + 1 WHERE id = $1",
                        chosen,
                        draw.choice(["approved", "pending", "spam"]),
                    )
                case 4:
                    await connection.execute(
                        "UPDATE palaver.comments SET state = 'deleted', body = NULL, version = version + 1,"
                        " deleted_at = now() WHERE id = $1",
                        chosen,
                    )
                case _:
                    await connection.execute(
                        "UPDATE palaver.threads SET title = $1, version = version + 1", str(draw.random())
                    )
        await asyncio.sleep(draw.random() * 0.002)


# Seeds and not hypothesis: the effect of a fault depends on timing, so hypothesis could not reproduce a failure.
@pytest.mark.parametrize("seed", range(6))
def test_the_view_equals_the_ledger_after_any_sequence_of_faults(rig: Rig, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - a draw that can be repeated
    faults = draw.choices(["server", "apply", "walsender", "view"], k=draw.randint(8, 20))
    asyncio.run(disturb(rig, draw, faults))
    assert differences(rig) == []
    assert rig.view_sql("SELECT count(*) FROM dead_letters") == [(0,)]


async def disturb(rig: Rig, draw: random.Random, faults: list[str]) -> None:
    rig.create_slot()
    rig.fence()
    stop = asyncio.Event()

    async def serve() -> None:
        server: ChangeServer = rig.change_server()
        await serve_http(server.app(), bind(f"127.0.0.1:{rig.port}"), graceful_stop_s=0)

    async with writing(rig) as writer, asyncio.TaskGroup() as group:
        work = group.create_task(write(writer, draw, stop))
        parts = {
            "server": RestartablePart(group, serve),
            "apply": RestartablePart(group, lambda: rig.applier().run(rig.channel())),
        }
        for fault in faults:
            await asyncio.sleep(draw.random() * PAUSE_S_MAX)
            if fault in parts:
                await parts[fault].restart()
            else:
                end_backends(rig, fault)
        stop.set()
        await work
        await rig.caught_up()
        for part in parts.values():
            await part.end()
