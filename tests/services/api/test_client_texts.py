"""Measures the CPU time of each text of a client. Each API has one event loop, so a slow request delays all others.

The texts come from the served document (path, query, headers, body) and from `HEADERS`, so a new parameter or field is
measured without an entry here. Each text goes through a whole request, from its bytes to those of the answer: parser,
middleware, route, and a fake of the ledger or the view. Only these tests are timed, in CPU time of this process.
"""

import asyncio
import gc
import re
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any, Final, cast
from urllib.parse import quote

import orjson
import pytest
import uvicorn
from pydantic import SecretStr
from uvicorn.server import ServerState

import services
from regions.coordination import Leadership
from regions.identity import CellId, RegionName
from regions.position import Position
from services.api.openapi import openapi_document
from services.api.requests import QUERY_BYTES_MAX
from services.api.site_origins import SiteOrigins
from services.read_api.application import read_application
from services.read_api.freshness import Freshness
from services.read_api.memory import PageMemory
from services.read_api.ready_pages import ReadyPages
from services.read_api.settings import ReadSettings
from services.read_api.shared_cache import SharedCache
from services.read_api.view_reader import ViewReader
from services.telemetry.http_protocol import PublicProtocol
from services.telemetry.middleware import AsgiApp
from services.telemetry.ready_protocol import ReadyProtocol
from services.telemetry.tracing import configure_tracing
from services.write_api.application import write_application
from services.write_api.leadership import LeadershipGuard
from services.write_api.pool import LedgerPool
from services.write_api.settings import WriteSettings

CPU_S_MAX: Final = 0.005
GROWTH_MAX: Final = 6
"""The allowed growth of the time from a text of n bytes to one of 4n; linear growth is 4."""
NEGLIGIBLE_S: Final = 0.001
"""Growth below this time does not matter, and noise would hide it. A small request takes half of it."""
TRIES: Final = 5
ROUNDS: Final = 4

HEAD_BYTES_MAX: Final = 60_000
"""The longest header, path or query that the edge accepts (`max_request_headers_kb` of regions/edge)."""
BODY_BYTES_MAX: Final = 131_072
"""The default of PALAVER_REQUEST_BYTES_MAX."""
BODY_CHARS_MAX: Final = 10_000
"""The default of PALAVER_BODY_CHARS_MAX."""
HEAD_SIZES: Final = (HEAD_BYTES_MAX, 4_000, 2_000)
BODY_SIZES: Final = (BODY_BYTES_MAX - 2_000, BODY_CHARS_MAX, 2_000)
"""A text that is refused at the largest size may be processed at a smaller one: keys have up to 2,000 characters, tags
4,096 bytes."""

HEADERS: Final = frozenset(
    {
        "accept-encoding", "access-control-request-headers", "access-control-request-method", "authorization",
        "content-length", "content-type", "expect", "host", "idempotency-key", "if-match", "if-none-match", "origin",
        "palaver-consistency", "palaver-epoch", "palaver-position", "traceparent", "transfer-encoding",
        "x-anything", "x-envoy-attempt-count", "x-request-id",
    }
)  # fmt: skip
"""Every header that code of the two processes reads, and one that no code reads."""

FRAMING: Final = {"content-length", "expect", "host", "transfer-encoding"}
"""Headers that the HTTP parser evaluates: it accepts only a few bytes of them."""
OPERATIONS_WITH_ANY_HEADER: Final = {"createSite", "editComment", "postComment", "readThread"}
"""One operation of each kind. Operations of a kind read headers with the same code."""

SITE: Final = uuid.UUID("01990d5e-3a00-7c62-9d2b-5a2a6f0c1e11")
COMMENT: Final = uuid.UUID("01990d5e-40ab-7f11-8a6e-2f4f7b1d9c02")
ADMIN_KEY: Final = "admin-key-of-tests"

Nasty = tuple[str, str, str]
"""The beginning, the repeated part, and the end of a text."""

NASTY: Final[Sequence[Nasty]] = (
    ("", "a", ""), ("", " ", ""), ("", "%", ""), ("", "&", ""), ("", "=", ""), ("", "+", ""), ("", ",", ""),
    ("", ";", ""), ("", ":", ""), ("", "*", ""), ("", "\u0130", ""), ("", "\U0001f600", ""), ("", '"', ""),
    ("", "\\", ""), ("", "9", ""), ("", "0", "x"), ("", "a,", ""), ("gzip", ";q=0", "x"), ("*", ", *", ""),
    ("https://", ":", ""), ("https://", ":", "x"), ("https://", ":80", "x"), ("https://", ":0", "x"),
    ("https://", "a", " "), ("https://", "a@", ""), ("https://a", "/", ""), ("https://a/", "/", "x"),
    ("https://a?", "&", "x"), ("https://a/?", "utm_=&", ""), ("https://a?", "&m", ""),
    ("https://a#", "#", ""), ("https://[", ":", "]:x"),
    ("", "a@", ""), ("a@", "a", " "), ("Bearer ", " ", "x"), ("Bearer ", "a", ""), ('"1', "-0", "x"), ('"', '1"', ""),
    ("bounded=", "9", ""), ("bounded=0.", "0", "x"), ("main.", "9", ".0"), ("main.1.", "0", ""), ("", ".", ""),
    ("00-", "a", ""), ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-", "-", ""), ("/", "../", ""),
    ("application/json", " ", ""), ("application/json;", ";charset=utf-8", ""), ("01990d5e-", "-", ""),
)  # fmt: skip

NASTY_MARKDOWN: Final[Sequence[Nasty]] = (
    ("", "[", ""), ("", "![", ""), ("", "](", ""), ("", "[a](", ""), ("", "[a]: b\n", ""), ("", ">", ""),
    (">" * 20, "[\n", ""), ("", ">" * 20 + "[\n", ""), ("", "- ", "x"), ("", "* * ", "x"), ("", "1. ", ""),
    ("", "a**b", ""), ("", "*~_", ""), ("", "**~~__", ""), ("", "~", "x"), ("", "~ ", ""), ("", "`a", ""),
    ("", "<", ""), ("", "<a ", ""), ("", "<a b='", ""), ("", "<!--", ""), ("", "<![CDATA[", ""), ("", "<a@b.c>", ""),
    ("", "[a](https://b) ", ""), ("", "&#", ""), ("", "&#1;", ""), ("", "a\n", "*"), ("", "a  \n", ""),
    ("", "|a|\n", ""), ("", "```\n", ""), ("", "\t", "x"), ("a", " ", "*"), ("", "\\<b>", ""), ("[a]: ", "<", ""),
)  # fmt: skip

NASTY_JSON: Final[Sequence[Nasty]] = (
    ("", "[", ""), ("", '{"a":', ""), ("[", "0,", "0]"), ('{"thread":[', "0,", "0]}"), ("", " ", "{}"),
    ('{"author":{', '"a":0,', '"a":0}}'), ("{", '"thread":"a",', '"body":"b"}'), ('{"thread":', "9", "}"),
    ('{"thread":0.', "9", "}"), ('{"thread":"', "\\u0041", '"}'), ('{"author":[', "{},", "{}]}"),
    ('{"name":"a","origins":[', "0,", "0]}"), ('{"x":[', "[],", "[]]}"), ('{"x":{"x":', "[[],", "0"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text of a client, and a function that makes a request with it.

    Attributes:
        name: Its place in the request.
        sizes: The sizes in bytes at which it is measured, largest first.
        nasty: The parts from which the text is built.
        request: Makes the request.
        spelled: Encodes the text for its place. Sizes are those of the encoded text.
    """

    name: str
    sizes: Sequence[int]
    nasty: Sequence[Nasty]
    request: Callable[[str], bytes]
    spelled: Callable[[str], str] = str

    def of_size(self, nasty: Nasty, size: int) -> bytes:
        """Return a request whose text has about this size."""
        begin, unit, end = map(self.spelled, nasty)
        return self.request(begin + unit * max(1, (size - len(begin) - len(end)) // len(unit)) + end)


def request_bytes(
    method: str, target: str, headers: Mapping[str, str], body: bytes = b"", *, more: tuple[str, str] | None = None
) -> bytes:
    lines = {"host": "test", "content-length": str(len(body))} | dict(headers)
    if more is not None:
        lines[more[0]] = more[1]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "ignore") + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation of the document, with a request that the API accepts."""

    method: str
    template: str
    document: Mapping[str, Any]
    components: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.document["operationId"]

    def path(self, **replaced: str) -> str:
        ids = {"site": str(SITE), "comment": str(COMMENT)} | replaced
        return re.sub(r"\{([a-z]+)\}", lambda match: ids[match[1]], self.template)

    def query(self, **replaced: str) -> str:
        needed = {
            one["name"]: quote("https://example.com/a", safe="")
            for one in self.document.get("parameters", [])
            if one["in"] == "query" and one["required"]
        }
        return "&".join(f"{name}={value}" for name, value in (needed | replaced).items())

    def headers(self) -> dict[str, str]:
        security = [name for one in self.document["security"] for name in one]
        headers = {"content-type": "application/json"} if "requestBody" in self.document else {}
        if any(one["in"] == "header" and one["name"] == "If-Match" for one in self.document["parameters"]):
            headers["if-match"] = '"1-0-0"'
        if security:
            headers["authorization"] = f"Bearer {ADMIN_KEY}"
        return headers

    def body(self) -> Any:
        content = self.document.get("requestBody", {}).get("content", {}).get("application/json")
        return None if content is None else content["example"]

    def request(
        self,
        *,
        path: str | None = None,
        query: str | None = None,
        more: tuple[str, str] | None = None,
        body: bytes | None = None,
    ) -> bytes:
        query = self.query() if query is None else query
        target = (self.path() if path is None else path) + ("?" + query if query else "")
        if body is None:
            body = b"" if self.body() is None else orjson.dumps(self.body())
        return request_bytes(self.method, target, self.headers(), body, more=more)

    def texts(self) -> Iterator[Text]:
        """Yield every text of a request."""
        for one in self.document.get("parameters", []):
            if one["in"] != "header":  # `HEADERS` has the headers; another test checks this
                for spelled in (_as_it_is, _quoted):
                    name = f"{one['in']} {one['name']}"
                    make = partial(self._with_parameter, one["in"], one["name"])
                    yield Text(name=name, sizes=HEAD_SIZES, nasty=NASTY, request=make, spelled=spelled)
        if self.name in OPERATIONS_WITH_ANY_HEADER:
            for name in sorted(HEADERS - FRAMING):
                make = partial(self._with_header, name)
                yield Text(name=f"header {name}", sizes=HEAD_SIZES, nasty=NASTY, request=make)
        if self.name == "countComments":
            for spelled in (_as_it_is, _quoted):
                sizes = (QUERY_BYTES_MAX // 100 - 10,)
                yield Text(name="of 100 threads", sizes=sizes, nasty=NASTY, request=self._hundred, spelled=spelled)
        if self.body() is not None:
            yield Text(name="body", sizes=(BODY_BYTES_MAX,), nasty=NASTY_JSON, request=self._with_body)
            for place in self._fields():
                nasty = (*NASTY, *NASTY_MARKDOWN) if place[-1] == "body" else NASTY
                make = partial(self._with_field, place)
                yield Text(name=".".join(map(str, place)), sizes=BODY_SIZES, nasty=nasty, request=make)

    def _with_parameter(self, where: str, name: str, text: str) -> bytes:
        if where == "path":
            return self.request(path=self.path(**{name: text}))
        return self.request(query=self.query(**{name: text}))

    def _with_header(self, name: str, text: str) -> bytes:
        return self.request(more=(name, text))

    def _with_body(self, text: str) -> bytes:
        return self.request(body=text.encode())

    def _with_field(self, place: Sequence[str | int], text: str) -> bytes:
        return self.request(body=self._with(place, text))

    def _hundred(self, text: str) -> bytes:
        return self.request(query="&".join(f"thread={text}{n}" for n in range(100)))

    def _with(self, place: Sequence[str | int], text: str) -> bytes:
        document: Any = orjson.loads(orjson.dumps(self.body()))
        node = document
        for step, following in pairwise(place):
            if isinstance(step, str) and step not in node:
                node[step] = {"name": "Ann"} if isinstance(following, str) else [""]
            node = node[step]
        node[place[-1]] = text
        encoded = orjson.dumps(document)
        # A text that is longer in JSON than a request may be is shortened.
        return encoded if len(encoded) <= BODY_BYTES_MAX else self._with(place, text[: len(text) * 7 // 8])

    def _fields(self) -> Iterator[tuple[str | int, ...]]:
        yield from self._fields_of(self.document["requestBody"]["content"]["application/json"]["schema"], ())

    def _fields_of(self, schema: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
        if "$ref" in schema:
            schema = self.components[schema["$ref"].rpartition("/")[2]]
        for one in schema.get("anyOf", ()):
            yield from self._fields_of(one, place)
        if schema.get("type") == "object":
            for name, field in schema["properties"].items():
                yield from self._fields_of(field, (*place, name))
        elif schema.get("type") == "array":
            yield from self._fields_of(schema["items"], (*place, 0))
        elif schema.get("type") == "string":
            yield place


def _as_it_is(text: str) -> str:
    """Encode only the characters that a request target must not contain."""
    return quote(text, safe="%&=+,;:*\\@/?[].!~-_")


def _quoted(text: str) -> str:
    return quote(text, safe="")


def operations() -> list[Operation]:
    document = openapi_document()
    return [
        Operation(
            method=method.upper(),
            template=template,
            document=operation,
            components=document["components"]["schemas"],
        )
        for template, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


class Ledger(LedgerPool):
    """A fake ledger that reports success for every call."""

    async def call(self, statement: str, *arguments: Any, **named: Any) -> Any:
        del arguments, named
        outcomes = {"post_": "created", "create_": "created", "edit_": "edited", "delete_": "deleted", "set_": "voted"}
        outcome = next(outcome for name, outcome in outcomes.items() if name in statement)
        row = {
            "id": str(COMMENT), "thread_key": "a", "parent_id": None, "author_id": None, "author_name": None,
            "author_url": None, "body": "b", "created_at": "2026-01-01T00:00:00+00:00", "edited_at": None,
            "version": 2, "state": "approved",
        }  # fmt: skip
        return {
            "outcome": outcome, "site_id": SITE, "lsn": 1, "comment_id": COMMENT,
            "comment_created_at": datetime(2026, 1, 1, tzinfo=UTC), "comment": orjson.dumps(row).decode(),
            "site_name": "A site", "site_origins": ["https://example.com"], "up": 1, "down": 0,
        }  # fmt: skip

    async def fetch(self, statement: str, *arguments: Any, **named: Any) -> Any:
        del statement, arguments, named
        return [{"id": SITE, "name": "A site", "origins": ["https://example.com"], "is_its_key": True}]


class View(ViewReader):
    """A fake view with a site without threads."""

    async def page(self, *arguments: object) -> Any:
        del arguments
        names = ("thread_id", "id", "thread_title", "thread_state", "thread_count", "page_version")
        return [dict.fromkeys(names)]

    async def comment(self, site: uuid.UUID, comment: uuid.UUID) -> Any:
        del site, comment
        return {"id": None, "thread_key": None}

    async def counts(self, site: uuid.UUID, keys: Sequence[str]) -> dict[str, int]:
        del site
        return dict.fromkeys(keys, 1)

    async def origins(self, site: uuid.UUID) -> Sequence[str] | None:
        del site
        return ["https://example.com"]


class KnownLeader:
    """A fake of the agent and of the voters: this region leads, and no voter proves a position."""

    async def is_current(self) -> bool:
        return True

    async def position(self) -> Position | None:
        return None


class Wire(asyncio.Transport):
    """An in-memory transport."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.written = asyncio.Event()
        self.closing = False

    def write(self, data: Any) -> None:
        self.sent += data
        self.written.set()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        self.written.set()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Server:
    """Both APIs, with in-memory connections."""

    def __init__(self) -> None:
        leadership = Leadership(
            epoch=1,
            leader=RegionName("us-east"),
            phase="serving",
            fence_id=uuid.UUID(int=1),
            reason="test",
            since="2026-01-01T00:00:00Z",
        )
        common = {"topology": Path("unused"), "internal_listen": "127.0.0.1:0", "listen": "127.0.0.1:0"}
        tracing = configure_tracing(process="test", region=None, ratio=0)
        leader = KnownLeader()
        pool = Ledger(
            "postgresql://unused", size=1, write_timeout_s=1, quorum_wait_cancelled=lambda _: None, broken=lambda: None
        )
        write_settings = WriteSettings(
            **common,  # pyright: ignore[reportArgumentType] - three settings of two types
            ledger_url="postgresql://unused",
            agent="127.0.0.1:1",
            agent_secret=SecretStr("a secret of the agents"),
            admin_key=SecretStr(ADMIN_KEY),
            derivation_secret=SecretStr("derivation-secret"),
        )
        self.write = write_application(
            settings=write_settings,
            cell=CellId("main"),
            pool=pool,
            guard=LeadershipGuard(lambda: leadership, RegionName("us-east")),
            agent=leader,
            tracing=tracing,
            missing=list,
        )
        read_settings = ReadSettings(
            **common,  # pyright: ignore[reportArgumentType] - three settings of two types
            view_url="postgresql://unused",
            redis_url="redis://127.0.0.1:1/0",
        )
        view = View("postgresql://unused", size=1)
        memory, freshness = PageMemory(bytes_max=10**7, life_s=60), Freshness(CellId("main"))
        origins = SiteOrigins(view.origins)
        self.read = read_application(
            settings=read_settings,
            cell=CellId("main"),
            view=view,
            shared=SharedCache(read_settings.redis_url, page_life_s=60),
            memory=memory,
            freshness=freshness,
            origins=origins,
            prover=leader,
            tracing=tracing,
            missing=list,
        )
        self.ready = ReadyPages(
            cell=CellId("main"), memory=memory, freshness=freshness, origins=origins, tracing=tracing
        )
        self.configs: dict[int, uvicorn.Config] = {}

    def app_of(self, operation: Operation) -> AsgiApp:
        at_the_leader = operation.method != "GET" or operation.name in {"listSites", "readSite"}
        return self.write if at_the_leader and operation.name != "previewComment" else self.read

    async def ask(self, app: AsgiApp, request: bytes) -> tuple[float, bytes]:
        """Send a request on a new connection; return the CPU time in seconds, and the answer."""
        config = self.configs.get(id(app))
        if config is None:
            config = self.configs[id(app)] = uvicorn.Config(
                cast("Any", app), ws="none", lifespan="off", log_config=None
            )
            config.load()
        wire = Wire()
        if app is self.read:
            protocol = ReadyProtocol(config, ServerState(), {}, ready=self.ready)
        else:
            protocol = PublicProtocol(config, ServerState(), {})
        protocol.connection_made(cast("Any", wire))
        begun_s = process_time()
        protocol.data_received(request)
        while not (wire.closing or _is_answered(protocol)):
            await wire.written.wait()
            wire.written.clear()
        taken_s = process_time() - begun_s
        protocol.connection_lost(None)
        return taken_s, bytes(wire.sent)


def _is_answered(protocol: PublicProtocol) -> bool:
    cycle: Any = protocol.cycle
    return cycle is not None and cycle.response_complete


@contextmanager
def without_collector() -> Generator[None]:
    """Disable the garbage collector, whose time would count for whichever request is running."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def best_of(server: Server, app: AsgiApp, request: bytes, enough_s: float) -> float:
    best_s = 1.0
    for _ in range(TRIES):
        taken_s, _answer = await server.ask(app, request)
        best_s = min(best_s, taken_s)
        if best_s <= enough_s:
            break
    return best_s


async def complaints(server: Server, app: AsgiApp, text: Text) -> list[str]:
    found: list[str] = []
    for nasty in text.nasty:
        for size in text.sizes:
            large, small = (text.of_size(nasty, one) for one in (size, size // 4))
            # Another process can evict the CPU caches for longer than five tries, so a slow request is measured again.
            small_s = large_s = 1.0
            for _ in range(ROUNDS):
                large_s = await best_of(server, app, large, NEGLIGIBLE_S)
                small_s = 0.0 if large_s <= NEGLIGIBLE_S else await best_of(server, app, small, NEGLIGIBLE_S)
                if large_s <= min(CPU_S_MAX, GROWTH_MAX * max(small_s, NEGLIGIBLE_S / 2)):
                    break
            else:
                found.append(f"{text.name} of {size} {nasty}: {small_s * 1000:.2f} ms -> {large_s * 1000:.2f} ms")
    return found


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.name)
async def test_a_text_of_a_client_takes_linear_and_little_time(operation: Operation) -> None:
    server = Server()
    app = server.app_of(operation)
    _, plain = await server.ask(app, operation.request())
    assert plain.startswith((b"HTTP/1.1 2", b"HTTP/1.1 404" if operation.name == "readComment" else b"HTTP/1.1 2"))
    found: list[str] = []
    with without_collector():
        for text in operation.texts():
            found += await complaints(server, app, text)
    assert found == []


def test_the_headers_of_the_document_are_among_those_that_are_measured() -> None:
    documented = {
        one["name"].lower()
        for operation in operations()
        for one in operation.document.get("parameters", [])
        if one["in"] == "header"
    }
    assert documented <= HEADERS


def test_every_header_that_the_code_looks_at_is_measured() -> None:
    """Code that reads a header contains its lower-case name as bytes."""
    looked_at: set[str] = set()
    for package in ("api", "read_api", "write_api", "telemetry"):
        for module in Path(services.__path__[0], package).glob("*.py"):
            text = module.read_text()
            looked_at |= set(re.findall(r'(?:(?:name|key) == |scope, |_HEADER: Final = )b"([a-z][a-z-]+)"', text))
    assert {"traceparent", "if-match", "palaver-epoch"} <= looked_at
    in_answers = {"allow", "palaver-degraded", "palaver-repeat", "vary"}
    assert looked_at - HEADERS - in_answers == set()
