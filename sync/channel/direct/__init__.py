"""The direct channel: the leader region streams to each region over HTTP.

Two halves that meet only on the wire: `server` and `client`. One request is one stream of JSON lines
(`sync.change`); acknowledgements travel in requests of their own, because HTTP/1.1 clients and proxies
do not read an answer while they still send.
"""

from typing import Final, Protocol

from regions.coordination import Leadership

CHANGES_PATH: Final = "/v1/changes"
ACK_PATH: Final = "/v1/changes/ack"

SNAPSHOT_HEADER: Final = "palaver-snapshot"
"""Of a stream that is a snapshot: why the changes after the subscriber's position are gone."""


class LeadershipSource(Protocol):
    """What both halves need of `regions.coordination.LeadershipView`."""

    current: Leadership | None

    async def next_after(self, known: Leadership | None) -> Leadership:
        """Wait until the latest leadership is another than ``known`` and return it."""
        ...


async def wait_for_new_leadership(leaders: LeadershipSource, leadership: Leadership) -> None:
    """Return when another epoch, leader or phase is in force; what else a record says is nothing to a stream."""
    current = leadership
    while (current.epoch, current.leader, current.phase) == (leadership.epoch, leadership.leader, leadership.phase):
        current = await leaders.next_after(current)
