"""Tests many random connections while the faults change: none stays open, and no bytes reach another connection."""

import asyncio
import logging
import os
import random

import pytest

from tests.infra.relay.wire import PATIENCE_S, Wire, until, wired

pytestmark = pytest.mark.integration

CLIENTS = 150


async def test_random_connections_and_faults_leave_nothing_open(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(7)  # noqa: S311 - the same storm each time
    caplog.set_level(logging.WARNING)
    async with wired() as wire:
        async with asyncio.TaskGroup() as tasks:
            weather = tasks.create_task(change_weather(wire, chance))
            clients = [tasks.create_task(visit(wire, random.Random(seed))) for seed in range(CLIENTS)]  # noqa: S311
            await asyncio.wait(clients)
            weather.cancel()
        assert sum(client.result() for client in clients) > CLIENTS / 4
        wire.network.heal()
        wire.hang_up()
        await until(lambda: wire.connections_open() == 0)
        assert wire.held_bytes() == 0
    assert not caplog.records


async def change_weather(wire: Wire, chance: random.Random) -> None:
    while True:
        wire.network.change(
            {
                "source": way[0],
                "target": way[1],
                "delay_ms": chance.choice([0, 0, 1, 5]),
                "jitter_ms": chance.choice([0, 0, 3]),
                "loss": chance.choice([0, 0, 0.01]),
                "cut": chance.random() < 0.2,
            }
            for way in ("ab", "ba")
        )
        await asyncio.sleep(0.03)


async def visit(wire: Wire, chance: random.Random) -> bool:
    """Connect at a random time, and do one of the things that clients do; return whether the echo was checked."""
    await asyncio.sleep(chance.random() * 1.5)
    reader, writer = await wire.connect()
    data = os.urandom(chance.choice([1, 100, 5_000, 300_000]))
    leave = chance.choice(["properly", "properly", "half", "abruptly", "at once"])
    if leave == "at once":
        writer.transport.abort()
        return False
    writer.write(data)
    if leave == "abruptly":
        await asyncio.sleep(chance.random() / 20)
        writer.transport.abort()
        return False
    if leave == "half":
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), PATIENCE_S) == data
    else:
        assert await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE_S) == data
        writer.close()
    return True
