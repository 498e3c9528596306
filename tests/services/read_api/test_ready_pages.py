"""Tests that the shortcut for cached pages answers as the application does."""

import asyncio
import contextlib
import socket
import tracemalloc
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from regions.identity import CellId
from regions.position import Position, encode_token
from services.api.openapi import openapi_document
from services.read_api.ready_pages import ReadyPages
from services.telemetry.http_server import bind, bind_unix, serve_http
from services.telemetry.ready_protocol import Headers, ReadyProtocol
from tests.answers import Answers, read_answer
from tests.services.read_api.conftest import CELL, Api, Thread, Writer, running_api
from tests.waiting import until

pytestmark = pytest.mark.integration

THREAD = "https://example.com/ready"
ORIGIN = "https://example.com"
ANSWERS = Answers(openapi_document())


class Counting:
    """The shortcut. It records its answers."""

    def __init__(self, ready: ReadyPages) -> None:
        self.ready = ready
        self.answered = 0

    def __call__(self, target: bytes, headers: Headers) -> tuple[bytes, bytes] | None:
        answer = self.ready(target, headers)
        self.answered += answer is not None
        return answer


class Stand:
    """The same application behind two servers, one with the shortcut and one without."""

    def __init__(self, api: Api, counting: Counting, thread: Thread, ports: tuple[int, int]) -> None:
        self.api = api
        self.thread = thread
        self.counting = counting
        self.short, self.long = ports
        self.path = f"/v1/sites/{api.writer.site}/comments?thread={THREAD}"

    async def both(self, request: bytes) -> bytes:
        """Send a request to both servers; assert that the answers are equal, and return the answer."""
        short, long = [await talk(port, request) for port in (self.short, self.long)]
        assert comparable(short) == comparable(long)
        ANSWERS.check(read_answer(request, short))
        return short

    def get(self, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
        head = [f"{method} {self.path} HTTP/{version}", "Host: test", "X-Request-Id: a-request", *lines]
        return "\r\n".join([*head, "", ""]).encode()


async def talk(port: int, request: bytes) -> bytes:
    """Send a request on a new connection that stays open until the answer is complete; return the answer."""
    for _ in range(1000):  # a server that has just started may not listen yet
        with contextlib.suppress(ConnectionRefusedError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("the server does not listen")
    try:
        return await ask(reader, writer, request)
    finally:
        writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request; return the whole answer."""
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not lengths or request.startswith(b"HEAD"):
        return head
    return head + await reader.readexactly(int(lengths[0].partition(b":")[2]))


def comparable(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Return the status line, the sorted headers except those that differ in every answer, and the body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    varying = (b"date:", b"traceparent:", b"palaver-consistency:", b"palaver-position:")
    names = sorted(line.partition(b":")[0] for line in lines)
    return status, names + sorted(line for line in lines if not line.startswith(varying)), body


@pytest.fixture
async def stand(writer: Writer) -> AsyncGenerator[Stand]:
    async with running_api(writer) as api, contextlib.AsyncExitStack() as stack:
        counting = Counting(
            ReadyPages(memory=api.memory, freshness=api.freshness, origins=api.origins, cell=CELL, tracing=api.tracing)
        )
        ports: list[int] = []
        for ready in (counting, None):
            listener = bind("127.0.0.1:0")
            ports.append(listener.getsockname()[1])
            serving = asyncio.ensure_future(serve_http(api.app, listener, ready=ready))
            stack.push_async_callback(ended, serving)
        thread = writer.thread(THREAD)
        for number in range(6):
            thread.add(body=f"Comment {number} is as long as it must be for a page that is worth compressing. " * 3)
        stand = Stand(api, counting, thread, (ports[0], ports[1]))
        # The first requests find no cached page, no gzipped form and no origins of the site.
        await talk(stand.long, stand.get("Accept-Encoding: gzip", f"Origin: {ORIGIN}"))
        assert api.memory.bytes > 0
        yield stand


async def ended(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


PLAIN: list[tuple[str, ...]] = [
    (),
    ("Accept-Encoding: identity",),
    ("Accept-Encoding: gzip, br",),
    ("Accept-Encoding: gzip;q=0",),
    ("Accept-Encoding: br", "X-Forwarded-For: 10.0.0.1"),
    ("If-None-Match: *",),
    ('If-None-Match: "something-else"',),
    ("If-None-Match: *", "Accept-Encoding: gzip"),
    ("Origin: https://foreign.example",),
    ("Origin: https://foreign.example", "If-None-Match: *"),
    ("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",),
    ("traceparent: nonsense",),
]


async def test_a_session_read_is_answered_at_once_after_its_position_was_announced(stand: Stand) -> None:
    heard, later = Position(1, 0x100), Position(1, 0x200)
    stand.api.writer.say(stand.api.writer.checkpoint(heard.epoch, heard.lsn))
    await until(lambda: stand.api.freshness.announced is not None and stand.api.freshness.announced.position == heard)
    token, foreign = encode_token(CELL, heard), encode_token(CellId("other"), heard)
    for answered, lines in enumerate(
        [
            (f"Palaver-Position: {token}",),
            (f"Palaver-Position: {token}", "Palaver-Consistency: session"),
            (f"Palaver-Position: {token}", "If-None-Match: *", "Accept-Encoding: gzip"),
        ],
        start=1,
    ):
        answer = await stand.both(stand.get(*lines))
        assert stand.counting.answered == answered, lines
        assert b"palaver-consistency: session; asked=session" in answer
        assert f"palaver-position: {token}".encode() in answer
    for lines in (
        (f"Palaver-Position: {encode_token(CELL, later)}",),
        (f"Palaver-Position: {foreign}",),
        ("Palaver-Position: nonsense",),
        ("Palaver-Position: " + "x" * 1000,),
        ("Palaver-Consistency: session",),
        (f"Palaver-Position: {token}", "Palaver-Consistency: strong"),
    ):
        await stand.both(stand.get(*lines))
        assert stand.counting.answered == 3, lines


async def test_the_shortcut_answers_a_plain_read_of_a_cached_page_as_the_application_does(stand: Stand) -> None:
    for answered, lines in enumerate(PLAIN, start=1):
        answer = await stand.both(stand.get(*lines))
        assert stand.counting.answered == answered, lines
        assert answer.startswith(b"HTTP/1.1 304" if "If-None-Match: *" in lines else b"HTTP/1.1 200"), lines


async def test_the_shortcut_sends_cors_headers_to_an_origin_of_the_site(stand: Stand) -> None:
    answer = await stand.both(stand.get(f"Origin: {ORIGIN}"))
    assert stand.counting.answered == 1
    assert f"access-control-allow-origin: {ORIGIN}".encode() in answer


async def test_no_long_client_header_stays_in_memory(stand: Stand) -> None:
    ready, target = stand.counting.ready, stand.path.encode()
    for name in (
        b"palaver-position", b"accept-encoding", b"if-none-match", b"origin", b"x-request-id", b"traceparent"
    ):  # fmt: skip
        ready(target, [(name, b"x" * 60_000)])
        tracemalloc.start()
        try:
            for number in range(50):
                ready(target, [(name, (b"%02d" % number) * 30_000)])
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 1_000_000, name


LEFT: list[dict[str, Any]] = [
    {"lines": ("Palaver-Consistency: bounded=60",)},
    {"lines": ("Palaver-Consistency: nonsense",)},
    {"lines": ("Palaver-Position: nonsense",)},
    {"lines": ("Content-Length: 0",)},
    {"lines": (f"X-Large: {'x' * 66_000}",)},
    {"lines": (), "method": "HEAD"},
    {"lines": (), "method": "PUT"},
    {"lines": (), "version": "1.0"},
    {"lines": ("Connection: close",)},
    {"lines": ("Connection: Upgrade", "Upgrade: websocket")},
]


async def test_everything_else_is_left_to_the_application(stand: Stand) -> None:
    for case in LEFT:
        lines = case.pop("lines")
        await stand.both(stand.get(*lines, **case))
        assert stand.counting.answered == 0, (lines, case)


async def test_another_thread_or_another_query_of_the_same_one_is_left_to_the_application(stand: Stand) -> None:
    for path in (f"{stand.path}&limit=1", f"{stand.path}&nonsense=1", f"{stand.path}x", "/v1/sites/none/comments"):
        stand.path, before = path, stand.path
        await stand.both(stand.get())
        stand.path = before
    assert stand.counting.answered == 0


async def test_split_and_pipelined_requests_are_answered_in_order(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    received, sent, original = 0, 0, ReadyProtocol.data_received

    def receive(protocol: ReadyProtocol, data: bytes) -> None:
        nonlocal received
        original(protocol, data)
        received += len(data)

    monkeypatch.setattr(ReadyProtocol, "data_received", receive)

    async def arrived() -> None:
        """Wait until the server has read all bytes, so that each piece arrives separately."""
        await until(lambda: received == sent)

    plain, other = stand.get(), stand.get("Palaver-Consistency: eventual")
    last = stand.get("Connection: close")
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.short)
    for piece in (plain[:20], plain[20:-1], plain[-1:] + other + plain + last):
        writer.write(piece)
        sent += len(piece)
        await arrived()
    everything = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert everything.count(b"HTTP/1.1 200 OK") == 4
    assert stand.counting.answered >= 1


async def test_a_new_comment_invalidates_the_cached_page_of_the_shortcut(stand: Stand) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.short)
    before = await ask(reader, writer, stand.get())
    assert stand.counting.answered == 1
    comment = str(stand.thread.add(body="The newest."))
    async with asyncio.timeout(10):
        answer = before
        while comment.encode() not in answer:
            answer = await ask(reader, writer, stand.get())
    assert answer != before
    writer.close()


async def test_the_shortcut_answers_nothing_while_the_channel_is_lost(stand: Stand) -> None:
    stand.api.memory.channel_lost()
    await stand.both(stand.get())
    assert stand.counting.answered == 0


async def test_the_shortcut_counts_its_requests(stand: Stand) -> None:
    labels = {"method": "GET", "route": "/v1/sites/{site}/comments", "status": "200"}

    def counted() -> float:
        return REGISTRY.get_sample_value("palaver_http_requests_total", labels) or 0

    before = counted()
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.short)
    await ask(reader, writer, stand.get())
    writer.close()
    assert stand.counting.answered == 1
    assert counted() == before + 1


async def test_a_server_listens_on_a_unix_socket_beside_its_port(stand: Stand, tmp_path: Any) -> None:
    path = tmp_path / "read_api.sock"
    path.write_text("left behind by a killed process")
    listener = bind("127.0.0.1:0")
    port = listener.getsockname()[1]
    serving = asyncio.ensure_future(serve_http(stand.api.app, listener, bind_unix(path), ready=stand.counting))
    try:
        over_tcp = await talk(port, stand.get())
        reader, writer = await asyncio.open_unix_connection(path)
        assert comparable(await ask(reader, writer, stand.get())) == comparable(over_tcp)
        writer.close()
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        await ended(serving)
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError):  # noqa: PT011 - a refused connection and a missing socket are both right
        probe.connect(str(path))
