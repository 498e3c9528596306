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
    """

    folder: Path
    listen: Address
    admin: Path
    read_socket: Path | None = None
    write_socket: Path | None = None
    trusted_hops: int = 0
