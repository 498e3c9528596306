"""Settings of a region's edge."""

from dataclasses import dataclass
from pathlib import Path

from regions.topology import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Settings of a region's edge.

    Attributes:
        folder: The folder of the xDS files.
        listen: Address at which Envoy accepts requests.
        admin: Envoy's admin socket.
        read_socket: Unix socket of the region's own read API; without it Envoy uses the TCP address. A page of 40 kB
            costs Envoy and the API a fifth less CPU time over the socket than over loopback (measured).
        write_socket: Unix socket of the region's own write API.
        trusted_hops: Proxies in front of Envoy that append to X-Forwarded-For. With 0 the client address is that of
            the peer, and Envoy ignores the header.
        request_bytes_max: Largest request body; Envoy buffers a body until it is complete.
        request_s: Time limit for receiving a request with its body, in seconds.
        connections_max: Bound on concurrent client connections; Envoy closes a further one at once.
        client_requests_per_s: Requests per second of one client address, 0 for no limit; bursts may have twice as many.
        client_writes_per_s: The same for requests that the leader answers: writes and reads of sites. They also
            count as requests.
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
