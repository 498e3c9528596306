"""Tests the simulated network with real sockets: what a client in region "a" sees of a host in region "b"."""

import asyncio
import os
import struct
from typing import cast

import pytest

from infra.relay import connection, delay_line
from infra.relay.faults import DELAY_MS_MAX, WINDOW_BYTES_MIN, FaultInvalid
from infra.relay.socks import GRANTED, METHOD_ACCEPTED, NOT_ALLOWED, REFUSED
from tests.infra.relay.wire import (
    PATIENCE_S,
    SOCKS_NAME,
    Streams,
    echo,
    receive_buffer,
    round_trip,
    until,
    wired,
)

pytestmark = pytest.mark.integration


async def test_bytes_pass_unchanged_in_both_directions_without_a_fault() -> None:
    data = os.urandom(8 * 1024 * 1024)
    async with wired() as wire:
        reader, writer = await wire.connect()
        writer.write(data)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), PATIENCE_S) == data
        counts = {direction.pair: direction.bytes_total for direction in wire.network.directions()}
        assert counts == {("a", "b"): len(data), ("b", "a"): len(data)}
        await until(lambda: wire.connections_open() == 0)


async def test_each_direction_adds_its_own_delay() -> None:
    async with wired() as wire:
        streams = await wire.connect()
        await round_trip(streams)
        wire.set("a", "b", delay_ms=120)
        assert await round_trip(streams) + 0.002 >= 0.12
        wire.set("b", "a", delay_ms=200)
        assert await round_trip(streams) + 0.002 >= 0.32


async def test_a_healed_delay_has_no_effect() -> None:
    async with wired() as wire:
        streams = await wire.connect()
        await round_trip(streams)
        wire.set("a", "b", delay_ms=DELAY_MS_MAX)
        wire.set("b", "a", delay_ms=DELAY_MS_MAX)
        wire.network.heal()
        async with asyncio.timeout(DELAY_MS_MAX / 1000):
            await round_trip(streams)


async def test_a_connection_takes_a_round_trip_before_it_sends() -> None:
    delays = [
        {"source": "a", "target": "b", "delay_ms": 100},
        {"source": "b", "target": "a", "delay_ms": 100},
    ]
    async with wired(faults=delays) as wire:
        assert await round_trip(await wire.connect()) + 0.004 >= 0.4


async def test_bytes_of_a_service_that_sends_first_arrive_after_a_round_trip() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with wired(greet) as wire:
        wire.set("b", "a", delay_ms=50, jitter_ms=50)
        reader, _ = await wire.connect()
        assert await asyncio.wait_for(reader.read(-1), PATIENCE_S) == b"hello"


async def test_jitter_and_loss_keep_the_order_of_bytes() -> None:
    async with wired() as wire:
        reader, writer = await wire.connect()
        for way in ("ab", "ba"):
            wire.set(*way, delay_ms=10, jitter_ms=10, loss=0.02)
        sent = b"".join(struct.pack(">I", number) for number in range(3000))
        for begin in range(0, len(sent), 120):
            writer.write(sent[begin : begin + 120])
            await asyncio.sleep(0)
        assert await asyncio.wait_for(reader.readexactly(len(sent)), PATIENCE_S) == sent


async def test_a_lost_segment_arrives_after_a_retransmission_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.relay.delay_line.random.random", lambda: 0.5)
    async with wired() as wire:
        streams = await wire.connect()
        await round_trip(streams)
        wire.set("a", "b", loss=0.999)
        before = wire.delivered_bytes("a", "b")
        streams[1].write(b"x")
        await until(lambda: wire.held_bytes() == 1)
        assert wire.delivered_bytes("a", "b") == before


async def test_a_cut_in_one_direction_holds_only_that_direction_and_heals() -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            heard.append(data)
            writer.write(b"answer")
        writer.close()

    async with wired(listen) as wire:
        reader, writer = await wire.connect()
        writer.write(b"first")
        assert await asyncio.wait_for(reader.readexactly(6), PATIENCE_S) == b"answer"
        for question, healed in ((b"question", None), (b"again", [("b", "a")])):
            before = wire.delivered_bytes("b", "a")
            wire.set("b", "a", cut=True)
            writer.write(question)
            await until(lambda question=question: heard[-1] == question)
            await until(lambda: wire.held_bytes() == 6)
            assert wire.delivered_bytes("b", "a") == before
            wire.network.heal(healed)
            assert await asyncio.wait_for(reader.readexactly(6), PATIENCE_S) == b"answer"


async def test_bytes_held_by_a_cut_are_delivered_in_order_when_it_heals() -> None:
    async with wired() as wire:
        reader, writer = streams = await wire.connect()
        await round_trip(streams)
        wire.set("a", "b", cut=True)
        for number in range(100):
            writer.write(struct.pack(">I", number))
            await asyncio.sleep(0)
        await until(lambda: wire.held_bytes() == 400)
        wire.set("a", "b", cut=False, delay_ms=30)
        got = await asyncio.wait_for(reader.readexactly(400), PATIENCE_S)
        assert struct.unpack(">100I", got) == tuple(range(100))
        assert wire.held_bytes() == 0


@pytest.mark.parametrize("way", ["ab", "ba"])
async def test_a_new_connection_waits_during_a_cut_and_opens_when_it_heals(way: str) -> None:
    async with wired() as wire:
        wire.set(*way, cut=True)
        reader, writer = await wire.connect()
        writer.write(b"ping")
        # The cut holds OPEN or OPENED; the client's bytes wait for the handshake.
        await until(lambda: [one._early for one in wire.connections()] == [[b"ping"]])
        await until(lambda: wire.held_items() == 1)
        assert wire.delivered_bytes("a", "b") == wire.delivered_bytes("b", "a") == 0
        wire.network.heal()
        assert await asyncio.wait_for(reader.readexactly(4), PATIENCE_S) == b"ping"


async def test_a_client_that_disconnects_during_a_cut_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "EARLY_END_S_MAX", 0.05)
    async with wired() as wire:
        wire.set("a", "b", cut=True)
        wire.set("b", "a", cut=True)
        for _ in range(5):
            _, writer = await wire.connect()
            writer.close()
        await until(lambda: sum(d.connections_total for d in wire.network.directions()) == 5)
        await until(lambda: wire.connections_open() == 0)


async def test_a_connection_held_too_long_by_a_cut_is_reset_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(100):
                writer.write(b"ok")
        except ConnectionResetError:
            ended.set()

    monkeypatch.setattr(delay_line, "HELD_S_MAX", 0.2)
    async with wired(listen) as wire:
        reader, writer = await wire.connect()
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(2), PATIENCE_S) == b"ok"
        wire.set("a", "b", cut=True)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), PATIENCE_S)
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
        assert (wire.connections_open(), wire.held_bytes()) == (0, 0)


async def test_the_end_of_one_direction_leaves_the_other_open() -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await reader.read(-1)
        writer.write(b"got " + received)
        await asyncio.sleep(0.05)
        writer.write(b", bye")
        writer.close()

    async with wired(answer_at_the_end) as wire:
        for delay_ms in (0, 40):
            wire.set("a", "b", delay_ms=delay_ms)
            reader, writer = await wire.connect()
            writer.write(b"all")
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(-1), PATIENCE_S) == b"got all, bye"


async def test_a_reset_crosses_the_network() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with wired(reset) as wire:
        wire.set("b", "a", delay_ms=50)
        reader, writer = await wire.connect()
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), PATIENCE_S)
        await until(lambda: wire.connections_open() == 0)


async def test_a_target_without_a_listener_resets_the_client_at_once() -> None:
    async with wired(None) as wire:
        reader, writer = await wire.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), PATIENCE_S)
        writer.close()
        await until(lambda: wire.connections_open() == 0)
        assert sum(direction.refused_total for direction in wire.network.directions()) == 1


@pytest.mark.parametrize("fault", [{}, {"delay_ms": 20.0}, {"cut": True}])
async def test_a_receiver_that_does_not_read_stops_its_sender(fault: dict[str, object]) -> None:
    async with wired(_pour) as wire:
        streams = await wire.connect()
        receive_buffer(streams, 4096)
        cast("asyncio.Transport", streams[1].transport).pause_reading()
        if fault:
            await until(lambda: sum(d.bytes_total for d in wire.network.directions()) > 0)
            wire.set("b", "a", **fault)
        (pouring,) = wire.connections()
        # While the receiver is blocked, or the direction cut, the relay does not read from the sender.
        await until(lambda: pouring.far._paused and (pouring._to_near._blocked or "cut" in fault))
        one_read = 256 * 1024
        assert wire.held_bytes() <= 10 * WINDOW_BYTES_MIN + one_read
        assert wire.held_bytes() + wire.delivered_bytes("b", "a") < 64 * 1024 * 1024


async def _pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            writer.write(bytes(65536))
            await writer.drain()
    except ConnectionError:
        return


async def test_bytes_sent_before_the_handshake_are_bounded_and_arrive_in_order() -> None:
    data = os.urandom(24 * 1024 * 1024)
    async with wired() as wire:
        wire.set("b", "a", cut=True)
        reader, writer = await wire.connect()
        writer.write(data)
        await until(lambda: [one.near._paused for one in wire.connections()] == [True])
        (waiting,) = wire.connections()
        one_read = 256 * 1024
        assert waiting._early_bytes <= connection.EARLY_BYTES_MAX + one_read
        assert writer.transport.get_write_buffer_size() > 0
        wire.network.heal()
        assert await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE_S) == data


async def test_a_slow_reader_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WRITE_BUFFER_BYTES_MAX", 4096)
    data = os.urandom(1024 * 1024)

    async def give(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    async with wired(give) as wire:
        wire.set("b", "a", delay_ms=5, jitter_ms=5)
        reader, _ = streams = await wire.connect()
        receive_buffer(streams, 65536)
        got = bytearray()
        while chunk := await asyncio.wait_for(reader.read(20_000), PATIENCE_S):
            got += chunk
            await asyncio.sleep(0.001)
        assert bytes(got) == data


async def test_an_invalid_change_changes_nothing() -> None:
    async with wired() as wire:
        with pytest.raises(FaultInvalid):
            wire.network.change(
                [{"source": "a", "target": "b", "cut": True}, {"source": "a", "target": "c", "cut": True}]
            )
        await round_trip(await wire.connect())


async def test_the_network_ends_with_connections_open_and_during_a_cut() -> None:
    async with wired() as wire:
        await round_trip(await wire.connect())
        wire.set("a", "b", cut=True)
        _, writer = await wire.connect()
        writer.write(b"never")
        await until(lambda: wire.connections_open() == 2)
    assert wire.connections_open() == 0


async def _socks(streams: Streams, host: str, port: int = 2380) -> bytes:
    reader, writer = streams
    writer.write(b"\x05\x01\x00")
    assert await asyncio.wait_for(reader.readexactly(2), PATIENCE_S) == METHOD_ACCEPTED
    writer.write(b"\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big"))
    return await asyncio.wait_for(reader.readexactly(10), PATIENCE_S)


async def test_socks_connects_to_a_known_name_under_the_same_faults() -> None:
    async with wired(faults=[{"source": "a", "target": "b", "delay_ms": 60}]) as wire:
        streams = await wire.connect(wire.socks_port)
        assert await _socks(streams, SOCKS_NAME.upper()) == GRANTED
        assert await round_trip(streams) + 0.002 >= 0.06


async def test_socks_refuses_an_unknown_name() -> None:
    async with wired() as wire:
        streams = await wire.connect(wire.socks_port)
        assert await _socks(streams, "example.org") == NOT_ALLOWED
        assert await streams[0].read() == b""


async def test_socks_reports_a_target_without_a_listener() -> None:
    async with wired(None) as wire:
        streams = await wire.connect(wire.socks_port)
        assert await _socks(streams, SOCKS_NAME) == REFUSED
        assert await streams[0].read() == b""


async def test_a_client_of_another_protocol_is_disconnected() -> None:
    async with wired(echo) as wire:
        reader, writer = await wire.connect(wire.socks_port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
