"""The change server: the leader's half of the direct channel.

Decides which client may subscribe (it has the bearer token and names a region of the topology) and when this region may
serve (while it leads). Does not know rows. It answers 401 or 400 to a request that it rejects, and 409 if this region
does not lead. Otherwise it answers with a stream (`stream`), or 503 if the ledger is unavailable.
"""

import hmac
from typing import Final

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from regions.coordination import Leadership
from regions.identity import RegionName
from regions.position import InvalidPosition, Position, decode_token
from regions.topology import InvalidTopology, Topology
from sync.channel.direct import ACK_PATH, CHANGES_PATH, COMPARISONS_PATH, LeadershipSource
from sync.channel.direct.comparisons import Comparisons
from sync.channel.direct.responses import problem
from sync.channel.direct.source import LedgerSource
from sync.channel.direct.stream import ChangeStream
from sync.channel.direct.subscriptions import Subscriptions
from sync.registry import Registry

ACK_BYTES_MAX: Final = 1024
"""An acknowledgement has two short texts."""


class ChangeServer:
    """Serves the change streams of a cell while this region leads it.

    Attributes:
        source: The own ledger, with the counts of its streams.
        comparisons: The sessions of comparisons; None in a region without a ledger, and until they are set.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        registry: Registry,
        leaders: LeadershipSource,
        ledger_conninfo: str | None,
        token: str,
    ) -> None:
        """Prepare the server.

        Args:
            topology: The regions that may subscribe.
            registry: The tables of the ledger that views hold.
            leaders: The leadership in force.
            ledger_conninfo: libpq conninfo of the own ledger member; None in a region without one.
            token: The bearer token that the regions of a deployment share.
        """
        self.source = LedgerSource(conninfo=ledger_conninfo, registry=registry, leaders=leaders)
        self._topology = topology
        self._leaders = leaders
        self._authorization = f"Bearer {token}".encode()
        self._subscriptions = Subscriptions()
        self.comparisons: Comparisons | None = None

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route(CHANGES_PATH, self._changes, methods=["GET"]),
                Route(ACK_PATH, self._acknowledge, methods=["POST"]),
                Route(COMPARISONS_PATH, self._open_comparison, methods=["POST"]),
                Route(COMPARISONS_PATH + "/{id}", self._end_comparison, methods=["DELETE"]),
                Route(COMPARISONS_PATH + "/{id}/{what}", self._compare, methods=["POST"]),
            ]
        )

    def close(self) -> None:
        """Ask every stream to end; each ends within a moment."""
        self._subscriptions.stop_all()
        if self.comparisons is not None:
            self.comparisons.close()

    @property
    def subscribed(self) -> list[RegionName]:
        """The regions that have a stream now."""
        return self._subscriptions.regions

    def serving_leadership(self) -> Leadership | None:
        """The leadership under which this region may serve; None if it may not."""
        current = self._leaders.current
        if current is None or current.phase != "serving" or current.leader != self._topology.region:
            return None
        return current

    async def _changes(self, request: Request) -> Response:
        if not self._authorized(request):
            return problem(401, "unauthorized", "The bearer token is missing or wrong.")
        try:
            region = self._topology.by_name(request.query_params.get("region", "")).name
            start = self._parse_position(request.query_params.get("from", ""))
        except (InvalidTopology, InvalidPosition) as error:
            return problem(400, "invalid-subscription", str(error))
        leadership = self.serving_leadership()
        if leadership is None or self.source.conninfo is None:
            return problem(409, "not-leader", f"Region {self._topology.region} does not lead.")
        if start.epoch > leadership.epoch:
            return problem(409, "not-leader", f"Epoch {leadership.epoch} here is older than {start.epoch}.")
        return ChangeStream(self.source, self._subscriptions, region=region, start=start, leadership=leadership)

    async def _acknowledge(self, request: Request) -> Response:
        if not self._authorized(request):
            return problem(401, "unauthorized", "The bearer token is missing or wrong.")
        try:
            if int(request.headers.get("content-length", ACK_BYTES_MAX + 1)) > ACK_BYTES_MAX:
                return problem(413, "too-large", f"At most {ACK_BYTES_MAX} bytes, with their length.")
            fields = orjson.loads(await request.body())
            region = self._topology.by_name(str(fields["region"])).name
            position = self._parse_position(str(fields["position"]))
        except (ValueError, KeyError, TypeError, InvalidTopology, InvalidPosition) as error:
            return problem(400, "invalid-acknowledgement", str(error))
        capture = self._subscriptions.capture_of(region)
        if capture is None:
            return problem(409, "not-subscribed", f"Region {region} has no stream here.")
        capture.confirm(position)
        return Response(status_code=204)

    async def _open_comparison(self, request: Request) -> Response:
        if not self._authorized(request):
            return problem(401, "unauthorized", "The bearer token is missing or wrong.")
        try:
            region = self._topology.by_name(request.query_params.get("region", "")).name
        except InvalidTopology as error:
            return problem(400, "invalid-comparison", str(error))
        leadership = self.serving_leadership()
        if leadership is None or self.comparisons is None:
            return problem(409, "not-leader", f"Region {self._topology.region} does not lead.")
        return await self.comparisons.open(region, leadership, scrub=request.query_params.get("scrub") == "1")

    async def _compare(self, request: Request) -> Response:
        if not self._authorized(request):
            return problem(401, "unauthorized", "The bearer token is missing or wrong.")
        if self.comparisons is None:
            return problem(404, "no-comparison", "There is no such comparison.")
        return await self.comparisons.answer(request, request.path_params["id"], request.path_params["what"])

    async def _end_comparison(self, request: Request) -> Response:
        if not self._authorized(request):
            return problem(401, "unauthorized", "The bearer token is missing or wrong.")
        if self.comparisons is None:
            return problem(404, "no-comparison", "There is no such comparison.")
        return self.comparisons.end(request.path_params["id"])

    def _authorized(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode("latin-1")
        return hmac.compare_digest(given, self._authorization)

    def _parse_position(self, token: str) -> Position:
        cell, position = decode_token(token)
        if cell != self._topology.cell:
            raise InvalidPosition(f"a position of cell {cell}; this is cell {self._topology.cell}")
        return position
