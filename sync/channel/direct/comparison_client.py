"""Opens comparisons with the serving leader: the view's half of the protocol of `comparisons`.

Decides where to connect and how answers are checked. Does not compare. Every answer is bounded before it is read.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, cast

import httpx
import orjson

from regions.plain_http import PlainTransport
from regions.position import Position
from regions.topology import Topology
from sync.change import SyncError
from sync.channel.direct import COMPARISONS_PATH, LeadershipSource
from sync.merkle import wire
from sync.merkle.descent import NodesRequest
from sync.merkle.rows import LeafDigests, RowsRequest
from sync.merkle.tree import Summary

OPEN_TIMEOUT_S: Final = 20.0
SUMMARY_TIMEOUT_S: Final = 70.0
"""The leader may have to read all rows first; it gives up after 60 s."""

ANSWER_TIMEOUT_S: Final = 15.0
CONNECT_TIMEOUT_S: Final = 3.0
ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024

Image = tuple[str, dict[str, str | None]]
"""Table and columns in text format."""


class ComparisonFailed(SyncError):
    """A comparison cannot be opened, or it ended early."""


class Comparison:
    """An open comparison.

    Attributes:
        position: The position of all answers.
        exchanged: Bytes of all bodies in both directions, so far.
        requests: Number of requests so far.
    """

    def __init__(self, client: httpx.AsyncClient, path: str, position: Position, received: int) -> None:
        """Wrap a session of the leader."""
        self.position = position
        self.exchanged = received
        self.requests = 1
        self._client = client
        self._path = path

    async def summary(self) -> Summary:
        """Return the summary of the ledger's tree; raises as `nodes`."""
        return wire.decode_summary(await self._post("summary", b"", SUMMARY_TIMEOUT_S))

    async def nodes(self, request: NodesRequest) -> bytes:
        """Return the digests that the leader has for a request.

        Raises:
            ComparisonFailed: The leader refused, or the connection broke.
            InvalidMessage: The answer is not valid.
        """
        return wire.check_nodes_answer(await self._post("nodes", wire.encode_nodes_request(request)), request)

    async def rows(self, request: RowsRequest) -> LeafDigests:
        """Return the digests of the rows of some leaves; raises as `nodes`."""
        return wire.decode_rows(await self._post("rows", wire.encode_rows_request(request)), request)

    async def images(self, key_hashes: Sequence[int]) -> list[Image]:
        """Return the rows with these key hashes; raises as `nodes`."""
        images: list[Image] = []
        left = list(key_hashes)
        while left:
            try:
                answer = cast("dict[str, Any]", orjson.loads(await self._post("images", orjson.dumps(left))))
                answered, rows = int(answer["answered"]), answer["rows"]
                images += [(str(table), dict(row)) for table, row in rows]
            except (ValueError, KeyError, TypeError) as error:
                raise ComparisonFailed(f"the leader's rows cannot be read: {error}") from error
            if answered < 1:
                raise ComparisonFailed("the leader answered no row")
            left = left[answered:]
        return images

    async def existing(self, rows: Sequence[tuple[str, tuple[str, ...]]]) -> int:
        """Return how many of some rows, given by table and key, the ledger has; raises as `nodes`."""
        body = orjson.dumps([[table, *key] for table, key in rows])
        try:
            return int(orjson.loads(await self._post("existing", body)))
        except (ValueError, TypeError) as error:
            raise ComparisonFailed(f"the leader's answer cannot be read: {error}") from error

    async def _post(self, what: str, body: bytes, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
        answer = await _send(self._client, f"{self._path}/{what}", body, timeout_s)
        self.requests += 1
        self.exchanged += len(body) + len(answer.content)
        return answer.content


class ComparisonClient:
    """Opens comparisons for the topology's own region."""

    def __init__(self, *, topology: Topology, leaders: LeadershipSource, token: str) -> None:
        """Prepare."""
        self._topology = topology
        self._leaders = leaders
        self._headers = {"authorization": f"Bearer {token}"}

    @asynccontextmanager
    async def open(self, *, scrub: bool = False) -> AsyncGenerator[Comparison]:
        """Open a comparison with the serving leader; it ends with the context.

        Args:
            scrub: The leader reads all rows of the ledger again.

        Raises:
            ComparisonFailed: No region serves, or the leader refused.
            InvalidMessage: The answer is not valid.
        """
        leadership = self._leaders.current
        if leadership is None or leadership.phase != "serving":
            raise ComparisonFailed("no region leads now")
        address = self._topology.by_name(leadership.leader).changes
        async with httpx.AsyncClient(
            base_url=f"http://{address}", headers=self._headers, transport=PlainTransport(), trust_env=False
        ) as client:
            query = f"?region={self._topology.region}{'&scrub=1' if scrub else ''}"
            answer = await _send(client, COMPARISONS_PATH + query, b"", OPEN_TIMEOUT_S)
            try:
                fields = cast("dict[str, Any]", orjson.loads(answer.content))
                path = f"{COMPARISONS_PATH}/{int(str(fields['id']), 16):032x}"
                position = Position(int(fields["epoch"]), int(fields["lsn"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ComparisonFailed(f"the leader's answer cannot be read: {error}") from error
            try:
                yield Comparison(client, path, position, len(answer.content))
            finally:
                await _end(client, path)


async def _send(client: httpx.AsyncClient, path: str, body: bytes, timeout_s: float) -> httpx.Response:
    try:
        async with client.stream(
            "POST", path, content=body, timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        ) as answer:
            content = bytearray()
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > ANSWER_BYTES_MAX:
                    raise ComparisonFailed(f"the leader's answer has more than {ANSWER_BYTES_MAX} bytes")
            whole = httpx.Response(answer.status_code, headers=answer.headers, content=bytes(content))
    except httpx.HTTPError as error:
        raise ComparisonFailed(f"the leader does not answer: {str(error) or type(error).__name__}") from error
    if whole.status_code != HTTPStatus.OK:
        raise ComparisonFailed(_detail(whole))
    return whole


async def _end(client: httpx.AsyncClient, path: str) -> None:
    """End the session; without an answer it ends by itself."""
    try:
        await client.delete(path, timeout=CONNECT_TIMEOUT_S)
    except httpx.HTTPError:
        return


def _detail(answer: httpx.Response) -> str:
    try:
        return str(orjson.loads(answer.content)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the leader answered {answer.status_code}"
