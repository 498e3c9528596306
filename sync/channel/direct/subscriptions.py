"""The subscriptions that a change server serves now, one for each region.

Decides that the newest subscription of a region replaces the older one. Does not know how a stream is served.
"""

import asyncio
import logging
from dataclasses import dataclass, field

from regions.identity import RegionName
from sync.capture import Capture

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class ActiveStream:
    """The stream of one region, from the request until its last byte.

    Attributes:
        older: The stream that this one replaces; its slot is free when it has ended.
        stop: Set when a newer subscription or the end of the process ends this stream.
        ended: Set when its slot is free again.
        capture: The open capture; None until it is open.
    """

    region: RegionName
    older: "ActiveStream | None"
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    capture: Capture | None = None


class Subscriptions:
    """The active streams, by region."""

    def __init__(self) -> None:
        """Begin without streams."""
        self._streams: dict[RegionName, ActiveStream] = {}

    @property
    def regions(self) -> list[RegionName]:
        """The regions that have a stream now."""
        return sorted(self._streams)

    def capture_of(self, region: RegionName) -> Capture | None:
        """Return the open capture of a region's newest stream, if there is one."""
        stream = self._streams.get(region)
        return None if stream is None else stream.capture

    def enter(self, region: RegionName) -> ActiveStream:
        """Register a stream of ``region``; the older one is asked to end."""
        older = self._streams.get(region)
        if older is not None:
            _log.info("a new subscription of %s replaces the older one", region)
            older.stop.set()
        stream = ActiveStream(region=region, older=older)
        self._streams[region] = stream
        return stream

    def leave(self, stream: ActiveStream) -> None:
        """Remove a stream that `enter` registered. Its slot must be free."""
        stream.ended.set()
        stream.older = None
        if self._streams.get(stream.region) is stream:
            del self._streams[stream.region]

    def stop_all(self) -> None:
        """Ask every stream to end; each ends within a moment."""
        for stream in self._streams.values():
            stream.stop.set()
