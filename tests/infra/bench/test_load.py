"""Tests the load client on a real server: it counts answers, and stops at another status."""

import asyncio

import pytest

from infra.bench.load import BadAnswer, get_request, run_load


async def serve(answer: bytes, split: int) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for start in range(0, len(answer), split):
                    writer.write(answer[start : start + split])
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


def answer_of(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("split", [7, 100_000])
async def test_every_answer_is_counted_whole_or_in_parts(split: int) -> None:
    answer = answer_of(200, b"x" * 300)
    server = await serve(answer, split)
    async with server:
        port = server.sockets[0].getsockname()[1]
        result = await run_load(port, lambda: get_request("/"), connections=3, seconds=0.3, expected=200)
    assert result.requests > 3
    assert result.requests == len(result.latencies_s)
    assert result.bytes_read == result.requests * len(answer)


async def test_another_status_ends_the_measurement() -> None:
    server = await serve(answer_of(503, b""), 1000)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BadAnswer, match="503"):
            await run_load(port, lambda: get_request("/"), connections=1, seconds=5, expected=200)
