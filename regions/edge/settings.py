"""Where a region's edge is, and whom it believes."""

from dataclasses import dataclass
from pathlib import Path

from regions.topology import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Where a region's edge is, and whom it believes.

    Attributes:
        folder: The folder of the xDS files.
        listen: Where Envoy takes requests.
        admin: Envoy's admin socket.
        read_socket: Unix socket of the region's own read API; its address is taken when there is none. A page costs
            Envoy and the API a fifth less through it than over loopback (measured, 40 kB).
        write_socket: The same of the region's own write API.
        trusted_hops: Proxies in front of Envoy that append to X-Forwarded-For. With none, the client is the peer of
            the connection, whatever its headers say.
        request_bytes_max: Largest body; it is held at the edge until it is whole.
        request_s: How long a request may take to arrive, its body included, in seconds.
        connections_max: Connections of clients at a time; the next one is closed at once.
        client_requests_per_s: Requests of one address a second, 0 for no limit. Twice as many may come at once.
        client_writes_per_s: The same of writes and of reads of sites, which the leader answers; they are requests too.
    """

    folder: Path
    listen: Address
    admin: Path
    read_socket: Path | None = None
    write_socket: Path | None = None
    trusted_hops: int = 0
    request_bytes_max: int = 131_072
    request_s: int = 30
    connections_max: int = 10_000
    client_requests_per_s: int = 1_000
    client_writes_per_s: int = 200
